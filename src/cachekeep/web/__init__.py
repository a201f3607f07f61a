"""The HTTP server in front of the gateway, and the few things that only the command line asks for."""
