"""``cachekeep chaos``: harm a cache of one's own on purpose, and see what a client of it would have felt."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import json
import math
import os
import re
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click

from cachekeep.chaos.cuts import unusable
from cachekeep.chaos.harm import Cut, Filling, Victim, clear_left_over
from cachekeep.chaos.probe import Writer
from cachekeep.cli import confirm, options, settings_of
from cachekeep.cli.client import call, published
from cachekeep.errors import CachekeepError, Unusable
from cachekeep.model.endpoint import parted

_KINDS: Final = {
    "kill-node": "kills the process of {nodes} (SIGKILL)",
    "hang-node": "freezes the process of {nodes} (SIGSTOP)",
    "cut-node": "cuts {nodes} off from everybody",
    "cut-zone": "cuts {zone} off from everybody: {nodes}",
    "fill-disk": "fills the disk of {nodes}",
}
_WRITING_SECONDS: Final = 120.0
"""How long it is waited, after the harm, until the probe writes again; then, until every node is back;
then, for an answer to what is lost."""
_RECOVERY_SECONDS: Final = 30.0
_CHECK_SECONDS: Final = 30.0
_SLACK_SECONDS: Final = 60.0
_KNOWN_SECONDS: Final = 10.0
_PROBE_PAUSE_SECONDS: Final = 0.001
_PROBE: Final = "cachekeep-chaos-probe"
_LOGIN_VARIABLE: Final = "CACHEKEEP_PASSWORD"


class _Span(click.ParamType[float]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m)?", str(value))
        if not found:
            self.fail(f"{value!r} is no time such as 500ms, 10s or 2m", param, ctx)
        return float(found[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0}[found[2] or "s"]


@click.command(short_help="Harm a cache on purpose, and see what its clients feel.")
@click.argument("kind", type=click.Choice([*_KINDS, "heal"]))
@click.argument("name")
@click.option("--node", help="Which node. [the primary]")
@click.option("--for", "seconds", type=_Span(), default="10s", show_default=True, help="How long the harm lasts.")
@click.option(
    "--user", default="", help=f"As which user the probe comes; its password, or an AUTH token, is in ${_LOGIN_VARIABLE}."
)
@click.option("--yes", is_flag=True, help="Ask nothing.")
@options("data_dir")
def chaos(kind: str, name: str, node: str | None, seconds: float, user: str, yes: bool, **flags: Any) -> None:
    """Harm the cache NAME, while a client writes to it, and report how long it could not, and which acknowledged writes are gone.

    Works on this machine, on caches of this data directory. The harm is undone at the end, and on Ctrl-C; after a `kill -9` of this
    command, `cachekeep chaos heal NAME` undoes it, as the next `cachekeep up` does with cuts. Cutting needs root. The report goes
    to the directory `reports` of the data directory and, in a sentence, to the cache's events.
    """
    settings = settings_of(flags)
    cache = call(settings, "status", name=name)["caches"][0] if kind == "heal" else _status(settings, name)
    if cache["engine"] == "memcached":
        raise Unusable(f"{name} runs memcached, which replicates nothing: there is no failover to try.")
    if kind == "heal":
        _heal(settings.data_dir, cache, name)
        return
    chosen = _chosen(cache, node)
    zone = chosen["zone"]
    nodes = [n for n in cache["nodes"] if n["zone"] == zone] if kind == "cut-zone" else [chosen]
    if kind.startswith("cut") and (why := unusable()) is not None:
        raise Unusable(f"{kind} {why}: it drops packets by rules of the kernel's.")
    victims = [Victim(settings.data_dir, n["name"], parted(n["endpoint"])[0]) for n in nodes]
    harm = _harm(kind, settings.data_dir, cache, victims)
    what = _KINDS[kind].format(nodes=", ".join(f"{n['name']} ({_role(cache, n)})" for n in nodes), zone=zone)
    if not yes:
        confirm(
            f"This {what} for {seconds:g} s. A probe writes keys named {_PROBE}:…, which expire in "
            f"{math.ceil(_kept_seconds(seconds) / 60)} minutes. "
            f"Everybody else who uses {name} feels it. Go on?",
            "nothing was harmed.",
        )
    report = _run(settings, cache, chosen, [n["name"] for n in nodes], harm, kind, what, seconds, user)
    path = _keep(settings.data_dir, report)
    sentence = _sentence(report)
    call(settings, "tell", name=cache["full_name"], message=f"Chaos: {sentence}")
    click.echo(sentence)
    click.echo(f"Report: {path}")


def _chosen(cache: Mapping[str, Any], node: str | None) -> Mapping[str, Any]:
    found = [n for n in cache["nodes"] if (node in (n["name"], n["member"]) if node else n.get("role") == "primary")]
    if not found:
        raise Unusable(
            f"{cache['name']} has no {f'node {node}' if node else 'primary now'}: {', '.join(n['name'] for n in cache['nodes'])}"
        )
    return found[0]  # type: ignore[no-any-return]


@contextlib.contextmanager
def _signals(victims: list[Victim], first: signal.Signals, last: signal.Signals | None) -> Iterator[None]:
    for victim in victims:
        victim.signal(first)
    try:
        yield
    finally:
        if last is not None:
            for victim in victims:
                victim.signal(last)


@contextlib.contextmanager
def _between(begin: Callable[[], None], end: Callable[[], None]) -> Iterator[None]:
    try:
        begin()
        yield
    finally:
        end()


def _harm(kind: str, data_dir: Path, cache: Mapping[str, Any], victims: list[Victim]) -> contextlib.AbstractContextManager[None]:
    """What is done, and undone; nothing is touched before it is entered. Raises ``Unusable`` where it cannot be."""
    match kind:
        case "kill-node":
            return _signals(victims, signal.SIGKILL, None)
        case "hang-node":
            return _signals(victims, signal.SIGSTOP, signal.SIGCONT)
        case "fill-disk":
            filling = Filling(victims[0], data_dir)
            return _between(filling.begin, filling.end)
        case _:
            leads = {n["name"] for n in cache["nodes"] if n.get("role") == "primary"}
            with_endpoint = [v for v in victims if v.name in leads]
            leading = [e for kind, e in cache["endpoints"].items() if kind.startswith("primary")] if with_endpoint else []
            endpoints = [parted(e)[0] for e in leading]
            cut = Cut(data_dir, with_endpoint or victims, endpoints, [v.address for v in victims])
            return _between(cut.begin, cut.end)


def _shut(error: str) -> bool:
    """Whether an engine says that it does not know or let the probe."""
    return error.startswith(("-NOAUTH", "-WRONGPASS", "-NOPERM"))


def _run(
    settings: Any,
    cache: Mapping[str, Any],
    chosen: Mapping[str, Any],
    harmed: Collection[str],
    harm: contextlib.AbstractContextManager[None],
    kind: str,
    what: str,
    seconds: float,
    user: str,
) -> dict[str, Any]:
    where = _written_at(cache, chosen)
    probe = Writer(
        _seeds(cache, chosen, harmed) if _slots(cache, chosen) else where,
        prefix=f"{_PROBE}:{{{_tag(cache, chosen)}}}",
        pause_seconds=_PROBE_PAUSE_SECONDS,
        kept_seconds=_kept_seconds(seconds),
        trust=published(settings) if cache["transit"] == "required" else "",
        login=(user, os.environ[_LOGIN_VARIABLE]) if _LOGIN_VARIABLE in os.environ else None,
    )
    try:
        end = time.monotonic() + 5
        while not probe.count and time.monotonic() < end:
            time.sleep(0.01)
        if not probe.count:
            told = f"The probe cannot write to {cache['name']} at {where[0]}:{where[1]}: {probe.last_error.rstrip('.')}."
            how = f" Name a user who may by --user, and have the password in ${_LOGIN_VARIABLE}." if _shut(probe.last_error) else ""
            raise Unusable(f"{told}{how} Nothing was harmed.")
        probe.mark()
        began = dt.datetime.now(dt.UTC)
        click.echo(f"{began:%H:%M:%S} chaos begins: it {what}")
        with harm:
            time.sleep(seconds)
        healed, before = time.monotonic(), probe.count
        writes_again = _within(_WRITING_SECONDS, lambda: probe.count >= before + 10)
        outage_seconds = max(probe.longest_pause_seconds, 0.0 if writes_again else probe.silent_seconds)
        recovered = _within(_RECOVERY_SECONDS, lambda: _whole(settings, cache["full_name"]))
        recovery_seconds = time.monotonic() - healed if recovered else None
        outage_seconds = max(outage_seconds, probe.longest_pause_seconds)
    finally:
        probe.stop()
    after = _status(settings, cache["full_name"], chosen["shard"])
    return {
        "cache": cache["name"],
        "kind": kind,
        "what": what,
        "node": chosen["name"],
        "shard": chosen["shard"] if _slots(cache, chosen) else None,
        "began": began.isoformat(timespec="milliseconds"),
        "lasted_seconds": seconds,
        "outage_seconds": round(outage_seconds, 4),
        "writes_again": writes_again,
        "acknowledged": probe.count,
        "lost": _lost(settings, cache["full_name"], chosen, probe),
        "recovered_after_seconds": None if recovery_seconds is None else round(recovery_seconds, 2),
        "primary_before": chosen["name"] if chosen.get("role") == "primary" else None,
        "primary_after": _now(after, chosen)["name"],
        "status_after": after["status"],
    }


def _status(settings: Any, name: str, shard: str = "") -> Mapping[str, Any]:
    """How a cache is, as soon as it is known who leads (``shard``, or any):
    for some seconds after a change nobody has looked yet."""
    seen: list[Mapping[str, Any]] = []

    def led() -> bool:
        seen[:] = call(settings, "status", name=name)["caches"]
        leads = any(n.get("role") == "primary" and shard in ("", n["shard"]) for n in seen[0]["nodes"])
        return leads or seen[0]["engine"] == "memcached"

    _within(_KNOWN_SECONDS, led)
    return seen[0]


def _within(seconds: float, true: Callable[[], bool]) -> bool:
    """Wait until something is true, but not for longer; whether it is."""
    end = time.monotonic() + seconds
    while not (is_true := true()) and time.monotonic() < end:
        time.sleep(0.05)
    return is_true


def _whole(settings: Any, name: str) -> bool:
    """Whether the cache and every node of it is available."""
    with contextlib.suppress(CachekeepError):
        seen = call(settings, "status", name=name)["caches"][0]
        return seen["status"] == "available" and all(n["status"] == "available" for n in seen["nodes"])
    return False


def _lost(settings: Any, name: str, chosen: Mapping[str, Any], probe: Writer) -> int | None:
    """How many acknowledged writes are gone. ``None`` if nobody who leads has said."""
    end = time.monotonic() + _CHECK_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(CachekeepError, OSError):
            return len(probe.missing(*_written_at(call(settings, "status", name=name)["caches"][0], chosen)))
        time.sleep(0.2)
    return None


def _kept_seconds(seconds: float) -> int:
    """How long the probe's keys are kept: they must outlast every wait before somebody asks for them."""
    return math.ceil(seconds + _WRITING_SECONDS + _RECOVERY_SECONDS + _CHECK_SECONDS + _SLACK_SECONDS)


def _now(cache: Mapping[str, Any], chosen: Mapping[str, Any]) -> Mapping[str, Any]:
    """Who leads the chosen node's shard now."""
    return next((n for n in cache["nodes"] if n["shard"] == chosen["shard"] and n.get("role") == "primary"), chosen)


def _written_at(cache: Mapping[str, Any], chosen: Mapping[str, Any]) -> tuple[str, int]:
    """The primary endpoint; of a cluster the shard's primary, which a client finds by being sent there; of one node, the node."""
    endpoint = cache["endpoints"].get("primary") or _now(cache, chosen)["endpoint"]
    return parted(endpoint)


def _slots(cache: Mapping[str, Any], node: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The slots of the node's shard, first and last of each range; none without cluster mode."""
    return next((x["slots"] for x in cache["shards"] if x["id"] == node["shard"]), [])


def _seeds(cache: Mapping[str, Any], chosen: Mapping[str, Any], harmed: Collection[str]) -> Callable[[], tuple[str, int]]:
    """Which node is asked next by a client that has lost its connection: the shard's primary first, then one after the other."""
    left = [n["endpoint"] for n in cache["nodes"] if n["name"] not in harmed] or [n["endpoint"] for n in cache["nodes"]]
    every = itertools.chain([_now(cache, chosen)["endpoint"]], itertools.cycle(left))
    return lambda: parted(next(every))


def _tag(cache: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    """One run's own keys; in cluster mode a hash tag whose slot the chosen node's shard owns.
    Raises ``Unusable`` if it owns none."""
    run = f"{int(time.time())}"
    if not any(x["slots"] for x in cache["shards"]):
        return run
    from valkey.crc import key_slot

    ranges = _slots(cache, chosen)
    if not ranges:
        raise Unusable(
            f"Shard {chosen['shard']} of {cache['name']} owns no slots, so nothing can be written there. Nothing was harmed."
        )
    tags = (f"{run}-{number}" for number in itertools.count())
    return next(tag for tag in tags if any(first <= key_slot(tag.encode()) <= last for first, last in ranges))


def _role(cache: Mapping[str, Any], node: Mapping[str, Any]) -> str:
    role = node.get("role") or "no role"
    return f"{role} of shard {node['shard']}" if _slots(cache, node) else role


def _keep(data_dir: Path, report: Mapping[str, Any]) -> Path:
    directory = data_dir / "reports"
    directory.mkdir(mode=0o700, exist_ok=True)
    stamp = re.sub(r"[^0-9T]", "", str(report["began"])[:19])
    path = directory / f"chaos-{stamp}-{report['cache']}-{report['kind']}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    return path


def _sentence(report: Mapping[str, Any]) -> str:
    lost = "which of them are lost was not checked: nobody answered" if report["lost"] is None else f"{report['lost']} of them lost"
    moved = (
        f", {report['primary_after']} leads now"
        if report["primary_before"] and report["primary_after"] != report["primary_before"]
        else ""
    )
    end = "" if report["writes_again"] else "; it cannot write yet"
    end += "" if report["recovered_after_seconds"] is not None else "; not all nodes are back yet"
    shard = f" (shard {report['shard']})" if report["shard"] else ""
    return (
        f"{report['kind']} {report['node']}{shard} for {report['lasted_seconds']:g} s: a client could not write for "
        f"{report['outage_seconds'] * 1000:.0f} ms, {report['acknowledged']} writes acknowledged, {lost}{moved}{end}."
    )


def _heal(data_dir: Path, cache: Mapping[str, Any], name: str) -> None:
    """Undo what a chaos that was killed has left: cuts, frozen processes, filling files."""
    clear_left_over(data_dir)
    for node in cache["nodes"]:
        with contextlib.suppress(Unusable):
            victim = Victim(data_dir, node["name"], parted(node["endpoint"])[0])
            victim.signal(signal.SIGCONT)
            Filling.undo(victim)
    click.echo(f"Nothing of a chaos is left at {name}.")
