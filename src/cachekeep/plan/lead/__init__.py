"""Who leads a shard."""
