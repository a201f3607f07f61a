"""Which shard owns which slots, and how they get there."""
