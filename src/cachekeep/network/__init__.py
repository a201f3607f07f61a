"""Endpoints: which addresses there are, the readers' balancer, Memcached's auto discovery."""
