"""What users ask of nodes that run: another type, version or mode, and errands."""
