"""What clients reach: endpoints, replicas in sync, the configuration endpoint."""
