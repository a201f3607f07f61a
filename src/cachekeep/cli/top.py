"""``cachekeep top``: what nodes do right now."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import click

from cachekeep.cli import options, settings_of
from cachekeep.cli.client import fetch
from cachekeep.errors import Unusable, printable
from cachekeep.security.tokens import SCRAPE_FILE

_LINE: Final = re.compile(r'(\w+)\{((?:\w+="(?:[^"\\]|\\.)*",?)*)\} (\S+)')
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_GROWS: Final = {
    "redis_commands_processed_total": "operations",
    "memcached_commands_total": "operations",
    "redis_keyspace_hits_total": "hits",
    "redis_keyspace_misses_total": "misses",
    "redis_evicted_keys_total": "evictions",
    "memcached_items_evicted_total": "evictions",
}
_IS: Final = {
    "redis_up": "up",
    "memcached_up": "up",
    "redis_memory_used_bytes": "memory_bytes",
    "redis_memory_max_bytes": "memory_max_bytes",
    "memcached_current_bytes": "memory_bytes",
    "memcached_limit_bytes": "memory_max_bytes",
    "redis_connected_clients": "clients",
    "memcached_current_connections": "clients",
}

Figures = dict[str, dict[str, Any]]


@click.command(short_help="What nodes do right now: operations, hits, memory, clients.")
@click.argument("name", required=False)
@click.option("--seconds", type=click.FloatRange(2.5, 60), default=3.0, show_default=True, help="Over how long rates are measured.")
@click.option("--once", is_flag=True, help="One table, and that is it.")
@click.option("--json", "as_json", is_flag=True, help="One table, for programs.")
@options("data_dir")
def top(name: str | None, seconds: float, once: bool, as_json: bool, **flags: Any) -> None:
    """What the nodes of all caches do right now, or those of NAME, until Ctrl-C."""
    settings = settings_of(flags)

    def look() -> tuple[float, Figures]:
        try:
            token = (settings.data_dir / SCRAPE_FILE).read_text().strip()
        except OSError as error:
            raise Unusable(
                f"{settings.data_dir / SCRAPE_FILE} cannot be read: {error.strerror}. `cachekeep up` makes it."
            ) from error
        text = fetch(settings, "/metrics", {"authorization": f"Bearer {token}"})
        return time.monotonic(), figures(text, name)

    before = look()
    while True:
        if not before[1]:
            raise Unusable(f"there is no cache {name}." if name else "there are no caches.")
        time.sleep(seconds)
        now = look()
        rows = rates(before[1], now[1], now[0] - before[0])
        before = now
        if as_json:
            click.echo(json.dumps(rows, indent=2))
            return
        if not once:
            click.clear()
        click.echo(f"{'node':24} {'operations/s':>12} {'hits':>6} {'memory':>20} {'clients':>8} {'evicted/s':>10}")
        for row in rows:
            click.echo(_shown(row))
        if once:
            return


def figures(text: str, cache: str | None) -> Figures:
    """Node → what a scrape says of it."""
    found: Figures = {}
    for metric, labels, value in _lines(text):
        if "node" in labels and cache in (None, labels["cache"]):
            node = found.setdefault(labels["node"], {"cache": labels["cache"], "operations": 0.0})
            if metric in _IS:
                node[_IS[metric]] = value
            elif metric in _GROWS:
                node[_GROWS[metric]] = node.get(_GROWS[metric], 0.0) + value
            if metric == "memcached_commands_total" and labels.get("command") == "get":
                node["hits" if labels["status"] == "hit" else "misses"] = value
    return found


def _lines(text: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    for line in text.splitlines():
        if found := _LINE.fullmatch(line):
            labels = {key: printable(re.sub(r"\\(.)", r"\1", value)) for key, value in _LABEL.findall(found[2])}
            yield found[1], labels, float(found[3])


def rates(before: Figures, now: Figures, seconds: float) -> list[dict[str, Any]]:
    """A row for each node. What began anew meanwhile has no rates."""
    rows = []
    for name, node in now.items():
        row = {"node": name, **{key: node.get(key) for key in ("cache", "up", "memory_bytes", "memory_max_bytes", "clients")}}
        grown = {
            key: node[key] - before.get(name, {})[key] for key in _GROWS.values() if key in node and key in before.get(name, {})
        }
        if all(value >= 0 for value in grown.values()):
            asked = grown.get("hits", 0.0) + grown.get("misses", 0.0)
            row["operations_per_second"] = round(grown.get("operations", 0.0) / seconds, 1)
            row["evictions_per_second"] = round(grown.get("evictions", 0.0) / seconds, 1)
            row["hit_percent"] = round(grown.get("hits", 0.0) / asked * 100, 1) if asked else None
        rows.append(row)
    return rows


def _shown(row: Mapping[str, Any]) -> str:
    if not row["up"]:
        return f"{row['node']:24} does not answer"

    def number(key: str, form: str = "{:g}") -> str:
        return "–" if row.get(key) is None else form.format(row[key])

    memory = f"{(row['memory_bytes'] or 0) / 1048576:.1f} of {(row['memory_max_bytes'] or 0) / 1048576:.0f} MiB"
    return (
        f"{row['node']:24} {number('operations_per_second'):>12} {number('hit_percent', '{:.0f} %'):>6} {memory:>20} "
        f"{number('clients'):>8} {number('evictions_per_second'):>10}"
    )
