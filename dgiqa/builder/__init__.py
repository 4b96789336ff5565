"""A bundle becomes an engine that is proved to score as the bundle does."""
