"""``cachekeep prometheus-config``."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import click

from cachekeep.cli import options, settings_of
from cachekeep.cli.client import endpoint_of
from cachekeep.security.tokens import SCRAPE_FILE
from cachekeep.settings import CA_FILE


@click.command(short_help="What Prometheus needs to be told to scrape all nodes.")
@options("data_dir", "host", "port")
def config(**flags: Any) -> None:
    """Print a scrape configuration for Prometheus: one target tells of all nodes of all caches."""
    settings = settings_of(flags)
    served = urlsplit(endpoint_of(settings, flags).url)
    by_tls = f"    scheme: https\n    tls_config:\n      ca_file: {json.dumps(str(settings.data_dir / CA_FILE))}\n"
    click.echo(
        "scrape_configs:\n"
        "  - job_name: cachekeep\n"
        "    honor_labels: true  # each node has its instance label\n"
        f"{by_tls if served.scheme == 'https' else ''}"
        "    authorization:\n"
        f"      credentials_file: {json.dumps(str(settings.data_dir / SCRAPE_FILE))}\n"
        "    static_configs:\n"
        f"      - targets: [{json.dumps(served.netloc)}]"
    )
