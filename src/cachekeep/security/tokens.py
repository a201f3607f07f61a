"""A token in a file: who can read that may scrape metrics, and nothing else."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

from cachekeep.errors import Unusable

SCRAPE_FILE: Final = "metrics.token"
"""In the data directory. Remove it, and start again: then there is a new one."""


def load_or_make(data_dir: Path) -> str:
    """The token of a data directory, mode 0600. Raises ``Unusable``."""
    path = data_dir / SCRAPE_FILE
    try:
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(32) + "\n")
        except FileExistsError:
            pass
        token = path.read_text().strip()
    except OSError as error:
        raise Unusable(f"{path} cannot be used: {error.strerror}.") from error
    if not token:
        raise Unusable(f"{path} is empty, so anybody could scrape metrics. Remove it: the next start makes a new one.")
    return token
