"""Cachekeep: managed caches on your own machines, behind the ElastiCache API."""
