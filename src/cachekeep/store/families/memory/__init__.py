"""Without a disk: for the simulated world."""
