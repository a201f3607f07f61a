"""Who is asking, and with what right: signatures, policies, users, certificates and keys."""
