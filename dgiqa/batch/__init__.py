"""Sets of images: scoring them shard by shard, and choosing among the scored ones."""
