"""``cachekeep ca``: by what clients know the nodes of caches with TLS."""

from __future__ import annotations

from typing import Any

import click

from cachekeep.cli import data_dir_flag, options, settings_of
from cachekeep.cli.client import call, published
from cachekeep.errors import Unusable


@click.command(short_help="The certificates by which clients know caches with TLS.")
@options("data_dir")
def ca(**flags: Any) -> None:
    """Print the certificates of all authorities whose certificates caches may show, PEM. Works whether the server runs or not.

    Kept in a file, ca.pem, they are what clients are given: valkey-cli --tls --cacert ca.pem -h ADDRESS
    """
    settings = settings_of(flags)
    pem = published(settings)
    if not pem:
        raise Unusable(
            f"{settings.data_dir} has no certificate authority yet. `cachekeep up{data_dir_flag(settings)}` makes one when it "
            "starts."
        )
    click.echo(pem, nl=False)


@click.command(short_help="Go from one certificate authority to another, step by step.")
@click.argument("step", type=click.Choice(["publish", "reissue", "retire"]))
@options("data_dir")
def rotate(step: str, **flags: Any) -> None:
    """Go from one certificate authority to another, while everything runs.

    publish makes another one: give clients what `cachekeep ca` prints then. reissue has it issue all certificates. retire ends the
    trust in the one before.
    """
    click.echo(f"{call(settings_of(flags), 'rotate-ca', step=step)['because']}.")
