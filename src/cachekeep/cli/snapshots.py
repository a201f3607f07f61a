"""``cachekeep snapshots``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cachekeep.cli import options, settings_of
from cachekeep.cli.client import call


@click.command(short_help="Snapshots, and whether each can be restored.")
@options("data_dir")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def snapshots(as_json: bool, **flags: Any) -> None:
    """Every snapshot, and what came of restoring it for a trial: whether it can be, when that was tried, keys, seconds."""
    found = call(settings_of(flags), "snapshots")["snapshots"]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if not found:
        click.echo("There are no snapshots. `aws elasticache create-snapshot …` takes one.")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("snapshot", "cache", "status", "taken", "bytes", "keys", "verified", "seconds"):
        table.add_column(
            heading, no_wrap=heading == "snapshot", justify="right" if heading in ("bytes", "keys", "seconds") else "left"
        )
    for each in found:
        table.add_row(
            each["name"],
            each["cache"],
            each["status"],
            each["asked_at"][:16],
            str(each["bytes"]),
            "" if each["keys"] is None else str(each["keys"]),
            _verified(each),
            "" if each["seconds"] is None else f"{each['seconds']:g}",
        )
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(table)


def _verified(each: Mapping[str, Any]) -> Text:
    if each["problem"]:
        return Text(f"no: {each['problem']}", style="red")
    return Text(f"{each['how']} {each['at'][:16]}" if each["verified"] else "not yet")
