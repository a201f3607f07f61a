"""The client that writes under failovers: the one that ``cachekeep chaos`` uses, so that tests and users measure the same."""

from cachekeep.chaos.probe import Where, Writer

__all__ = ["Where", "Writer"]
