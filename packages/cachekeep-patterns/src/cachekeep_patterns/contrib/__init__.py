"""Adapters to web frameworks. Each module needs its framework; nothing here is imported by anything else."""
