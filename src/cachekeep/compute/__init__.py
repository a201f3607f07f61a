"""Hands: processes and orders to engines."""
