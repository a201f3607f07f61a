"""ElastiCache's operations. Each module ends with the table of those it serves."""
