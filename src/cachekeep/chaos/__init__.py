"""Harm on purpose, on this machine: what is done to processes and to the traffic between addresses, and always undone."""
