"""Sets of images: scoring them shard by shard, and choosing among those that were scored."""
