"""``cachekeep env``: what AWS SDKs read from the environment."""

from __future__ import annotations

import json
import shlex
from typing import Any, Final

import click

from cachekeep.cli import options, settings_of
from cachekeep.cli.client import endpoint_of
from cachekeep.settings import CA_FILE

_CLEARED: Final = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_ELASTICACHE", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
"""What would lead an SDK elsewhere, or spoil the signature."""


@click.command(short_help='Settings for every AWS SDK: eval "$(cachekeep env)".')
@options("data_dir", "host", "port", "region")
@click.option(
    "--format", "form", type=click.Choice(["sh", "fish", "json"]), default="sh", show_default=True, help="For which shell."
)
def env(form: str, **flags: Any) -> None:
    """Print endpoint URL, region, access key and secret for every AWS SDK and tool. Works whether the server runs or not.

    \b
        eval "$(cachekeep env)"                   # sh, bash, zsh
        cachekeep env --format fish | source      # fish
    """
    from cachekeep.security.keys import load_or_make

    settings = settings_of(flags)
    endpoint = endpoint_of(settings, flags)
    key = load_or_make(settings.data_dir)
    values = {
        "AWS_ENDPOINT_URL": endpoint.url,
        "AWS_DEFAULT_REGION": endpoint.region,
        "AWS_REGION": endpoint.region,
        "AWS_ACCESS_KEY_ID": key.access_key,
        "AWS_SECRET_ACCESS_KEY": key.secret_key,
    }
    if endpoint.url.startswith("https:"):
        values["AWS_CA_BUNDLE"] = str(settings.data_dir / CA_FILE)
    if form == "json":
        click.echo(json.dumps(values, indent=2))
    elif form == "fish":
        lines = [f"set -gx {name} {shlex.quote(value)};" for name, value in values.items()]
        click.echo("\n".join([*lines, *(f"set -e {name};" for name in _CLEARED)]))
    else:
        lines = [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
        click.echo("\n".join([*lines, f"unset {' '.join(_CLEARED)}"]))
