"""A seeded world: real keepers, planner and store logic over simulated processes, engines, networks and time."""
