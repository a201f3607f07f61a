"""``cachekeep ca``: by what clients know the nodes of caches with TLS."""

from __future__ import annotations

from typing import Any

import click

from cachekeep.cli import data_dir_flag, options, settings_of
from cachekeep.errors import Unusable
from cachekeep.settings import CA_FILE, Settings


@click.command(short_help="The certificates by which clients know caches with TLS: cachekeep ca > ca.pem.")
@options("data_dir")
def ca(**flags: Any) -> None:
    """Print the certificates of all authorities whose certificates caches may show, PEM. Works whether the server runs or not.

    \b
        cachekeep ca > ca.pem
        valkey-cli --tls --cacert ca.pem -h ADDRESS
    """
    settings = settings_of(flags)
    pem = published(settings)
    if not pem:
        raise Unusable(
            f"{settings.data_dir} has no certificate authority yet. `cachekeep up{data_dir_flag(settings)}` makes one when it "
            "starts."
        )
    click.echo(pem, nl=False)


def published(settings: Settings) -> str:
    """What clients are to trust, PEM; empty: nothing yet. Raises ``Unusable``."""
    path = settings.data_dir / CA_FILE
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise Unusable(f"{path} cannot be read: {error.strerror}.") from error
