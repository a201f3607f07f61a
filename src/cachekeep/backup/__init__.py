"""Backups: whoever can be a replica can record, whoever can be a primary can restore (decision 60)."""
