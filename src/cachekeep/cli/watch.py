"""``cachekeep status``, ``explain`` and ``failover``: what the running control plane knows and does."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import click

from cachekeep.cli import data_dir_flag, options, settings_of
from cachekeep.cli.client import call

_as_json = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.command(short_help="Caches, nodes, roles, endpoints, health.")
@click.argument("name", required=False)
@options("data_dir")
@_as_json
def status(name: str | None, as_json: bool, **flags: Any) -> None:
    """How the caches are: nodes, roles, replication, endpoints, and the planner's last sentence.

    NAME: one of them, by its own name or that of a member; group/NAME or cluster/NAME where a group and a cluster have one name.
    """
    found = call(settings_of(flags), "status", name=name or "")
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if not found["caches"]:
        click.echo("There are no caches. `aws elasticache create-replication-group …` makes one.")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("cache", "status", "engine", "node", "role", "health", "endpoint"):
        table.add_column(heading, no_wrap=heading in ("cache", "node", "endpoint"))
    sentences: list[tuple[str, Text]] = []
    names = [cache["name"] for cache in found["caches"]]
    for cache in found["caches"]:
        label = cache["full_name"] if names.count(cache["name"]) > 1 else cache["name"]
        state = Text(cache["status"], style=_colour(cache["status"], cache["refused"]))
        running = f"{cache['engine']} {cache['version']}{_pending(cache, 'engine')}"
        node_type = Text(f"{cache['node_type']}{_pending(cache, 'node_type')}", style="dim")
        table.add_row(label, state, running, node_type, "", "", "")
        for role, endpoint in cache["endpoints"].items():
            table.add_row("", "", "", "", f"[dim]{role}[/]", "", endpoint)
        for node in cache["nodes"]:
            health = Text(node["status"], style=_colour(node["status"], bool(node.get("problem"))))
            health.append(_details(node), style="dim")
            table.add_row("", "", "", node["name"], node.get("role") or "", health, node["endpoint"])
        sentence = Text(f"{'refused: ' if cache['refused'] else ''}{cache['because']}", style="red" if cache["refused"] else "dim")
        sentences.append((label, sentence))
        if cache["warning"]:
            sentences.append((label, Text(cache["warning"], style="yellow")))
    console = Console(width=None if _is_terminal() else 200, highlight=False)
    console.print(table)
    for cache_name, sentence in sentences:
        console.print(Text(f"{cache_name}:", style="bold"), sentence)
    for lost in found["snapshots"]:
        console.print(Text("lost:", style="bold"), Text(lost, style="red"))
    for lack in found["lacks"]:
        console.print(Text("lacks:", style="bold"), Text(lack, style="yellow"))


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _colour(state: str, wrong: bool) -> str:
    return "red" if wrong else "green" if state == "available" else "yellow"


def _pending(cache: Mapping[str, Any], what: str) -> str:
    """What it becomes, where it is not that yet: `` → 9.0 in the window``."""
    for change in cache["pending"]:
        if change["what"] == what:
            coming = change["to"].removeprefix(f"{cache['engine']} ")
            return f" → {coming}{' in the window' if change['in_window'] else ''}"
    return ""


def _details(node: Mapping[str, Any]) -> str:
    said = []
    if node.get("role") == "replica":
        said.append("in sync" if node.get("in_sync") else "not in sync")
        if node.get("lag_bytes"):
            said.append(f"{node['lag_bytes']} bytes behind")
    if node.get("pending_reboot"):
        said.append("pending reboot")
    if node.get("fewer_clients"):
        said.append(str(node["fewer_clients"]))
    if node.get("problem"):
        said.append(str(node["problem"]))
    return "".join(f", {text}" for text in said)


@click.command(short_help="What the planner would do with a cache now, and why.")
@click.argument("name")
@options("data_dir")
@click.option("--all", "everything", is_flag=True, help="Every rule that was asked, in their order, the silent ones too.")
@_as_json
def explain(name: str, everything: bool, as_json: bool, **flags: Any) -> None:
    """What the planner would do with NAME now, and why: the running control plane looks and thinks, and does nothing."""
    found = call(settings_of(flags), "explain", name=name)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(f"{found['name']}: {'refused' if found['refused'] else found['step']}: {found['because']}")
    for number, stage in enumerate(found["effects"], 1):
        for effect in stage:
            click.echo(f"  stage {number}: {effect}")
    shown = [rule for rule in found["rules"] if rule["step"] or everything]
    if shown:
        click.echo(f"\nRules that {'were asked' if everything else 'have something to say'}, in their order:")
    for rule in shown:
        click.echo(f"  {rule['rule']:24} {rule['step']}: {rule['because']}" if rule["step"] else f"  {rule['rule']:24} –")
    click.echo("\nWhat was seen:")
    for node, view in found["view"]["nodes"].items():
        click.echo(f"  {node}: {', '.join(_facts(view))}")
    for front, view in found["view"]["fronts"].items():
        click.echo(f"  {front}: {', '.join(_facts(view))}")
    if silent := len(found["rules"]) - len(shown):
        click.echo(f"\n{silent} rules have nothing to say; --all lists them.")


def _facts(view: Mapping[str, Any]) -> Iterable[str]:
    """What is known, for people: of what a node has said of its data, kept word by word for a failover, only the last."""
    hidden = ("digests",)
    last = {**view, "heard": view["heard"][0]["stream"]} if view.get("heard") else view
    return [f"{k}={v}" for k, v in last.items() if v not in (None, [], "", False) and k not in hidden]


@click.command(short_help="Make another node the primary.")
@click.argument("name")
@click.option("--shard", metavar="ID", help="Which shard, where there is more than one.")
@click.option("--to", metavar="NODE", help="The next primary. [the best replica; the old primary is restarted]")
@click.option(
    "--allow-data-loss",
    is_flag=True,
    help="Where a shard waits because no node in sync is left: go on with one that lacks writes. They are lost.",
)
@options("data_dir")
def failover(name: str, shard: str | None, to: str | None, allow_data_loss: bool, **flags: Any) -> None:
    """Make another node of NAME the primary, by a hand-over that loses no write where the present one is well."""
    settings = settings_of(flags)
    answer = call(settings, "failover", name=name, shard=shard, to=to, allow_data_loss=allow_data_loss)
    click.echo(f"{name}: {answer['because']}. `cachekeep status {name}{data_dir_flag(settings)}` shows when it has happened.")


@click.command(short_help="Change the passwords of Cachekeep's own users.")
@click.argument("name")
@options("data_dir")
def rotate(name: str, **flags: Any) -> None:
    """Change the passwords by which the nodes of NAME are given orders and come to each other. Clients notice nothing."""
    settings = settings_of(flags)
    answer = call(settings, "rotate", name=name)
    click.echo(f"{name}: {answer['because']}. An event says when that is done.")
