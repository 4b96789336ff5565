"""Turn a bundle into an engine that is proved to score as the bundle does."""
