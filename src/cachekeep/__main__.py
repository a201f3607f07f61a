"""``python -m cachekeep``: the same as the command ``cachekeep``."""

from cachekeep.cli import main

main()
