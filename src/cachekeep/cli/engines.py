"""``cachekeep engines``: what is installed, what it can do, and how to get what is missing."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click
import msgspec

from cachekeep.cli import options, settings_of
from cachekeep.errors import CachekeepError, printable
from cachekeep.settings import ENGINES_DIR

if TYPE_CHECKING:
    from cachekeep.engines.catalogue import Catalogue


@click.group(short_help="Installed engines and what they can do; install more.", invoke_without_command=True)
@options("data_dir")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_context
def engines(context: click.Context, /, as_json: bool, **flags: Any) -> None:
    """Installed engine builds, their versions and capabilities; those that are missing, and how to get them."""
    settings = settings_of(flags)
    context.obj = settings
    if context.invoked_subcommand is not None:
        return
    from cachekeep.engines.catalogue import OFFERS
    from cachekeep.toolchain.installed import discover
    from cachekeep.toolchain.making import making

    under_way = making(settings.data_dir / ENGINES_DIR)
    found = discover([settings.data_dir / ENGINES_DIR], settings.data_dir)
    serves = {b.server: [o.version for o in OFFERS if o.engine == b.engine and found.serving(o) == b] for b in found.builds}
    if as_json:
        rows = [
            {
                "engine": b.engine,
                "version": b.version,
                "tls": b.tls,
                "allocator": b.allocator,
                "capabilities": sorted(b.capabilities),
                "config_get": bool(b.preload),
                "unsafe": b.unsafe,
                "holes": [{"id": h.id, "does": h.does, "grave": h.grave, "source": h.source} for h in b.holes],
                "serves": serves[b.server],
                "server": b.server,
            }
            for b in found.builds
        ]
        told = {"missing": missing(found), "lacks": found.lacks, "broken": found.broken, "making": msgspec.to_builtins(under_way)}
        click.echo(json.dumps({"builds": rows, **told}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("engine", "version", "TLS", "serves", "capabilities", "program"):
        table.add_column(heading, no_wrap=heading in ("engine", "version", "TLS"), overflow="fold")
    for b in found.builds:
        table.add_row(
            b.engine,
            b.version,
            "yes" if b.tls else "no",
            " ".join(serves[b.server]) or "–",
            " ".join(sorted(b.capabilities)),
            b.server,
        )
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    console.print(table)
    if under_way is not None:
        console.print(f"{under_way.state}: {printable(under_way.sentence)}", markup=False)
    for engine in missing(found):
        console.print(f"missing: {engine} – {how_to_get(engine, found)}", markup=False)
    for sentence in found.lacks:
        console.print(f"lacks: {sentence}", markup=False)
    for b in found.builds:
        if b.holes:
            console.print(f"{b.engine} {b.version}: {b.warning} – {how_to_mend(b.engine, found)}", markup=False)
    for path, why in found.broken.items():
        console.print(f"broken: {path}: {printable(why)}", markup=False)


@engines.command(short_help="Build an engine with TLS from the distribution's source package.")
@click.argument("spec", metavar="ENGINE[@VERSION]")
@click.option("--safe", is_flag=True, help="Only of a source without grave holes that are known.")
@options("data_dir")
@click.pass_obj
def install(settings: Any, /, spec: str, safe: bool, **flags: Any) -> None:
    """Build ENGINE (valkey, redis, memcached) with TLS from the distribution's source package; for instance valkey@9.1.

    Takes some minutes. A control plane that runs uses the build at once.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from cachekeep.cli.client import call
    from cachekeep.toolchain import build
    from cachekeep.toolchain.making import Bulletin

    if flags["data_dir"]:
        settings = settings_of(flags)
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.fields[stage]:8}"), BarColumn(), TextColumn("{task.fields[line]}"), TimeElapsedColumn(), console=console
    )
    bulletin = Bulletin(settings.data_dir / ENGINES_DIR, spec)
    with bar:
        task = bar.add_task(spec, total=100, stage="", line="")

        def tell(step: build.Progress) -> None:
            line = printable(step.line)
            bar.update(task, completed=step.percent, stage=step.stage, line=line[:60])
            if bulletin.tell(step) and not console.is_terminal:
                click.echo(f"{step.stage}: {line}", err=True)

        try:
            built = build.install(spec, settings.data_dir / ENGINES_DIR, tell, safe=safe)
        except CachekeepError as error:
            bulletin.failed(str(error))
            raise
        bulletin.done()
    click.echo(f"{built.engine} {built.version}{' with TLS' if built.tls else ''} is installed: {built.server}")
    try:
        call(settings, "reload")
    except CachekeepError:
        return
    click.echo("The control plane that runs uses it from now on.")


def missing(catalogue: Catalogue) -> list[str]:
    """Engines of which there is no build at all, and programs that some caches need."""
    from cachekeep.network.fronts import find_haproxy

    here = {b.engine for b in catalogue.builds}
    lacking = [engine for engine in ("valkey", "redis", "memcached") if engine not in here]
    return lacking if find_haproxy() else [*lacking, "haproxy"]


def how_to_get(engine: str, catalogue: Catalogue) -> str:
    """One line for people."""
    if engine == "haproxy":
        return "apt install haproxy (reader endpoints over several replicas)"
    package = {"valkey": "valkey-server", "redis": "redis-server"}.get(engine, engine)
    return f"apt install {package}, or: `{catalogue.install_command(engine)}`"


def how_to_mend(engine: str, catalogue: Catalogue) -> str:
    """One line for people whose build has known holes."""
    return f"for a newer one: `{catalogue.install_command(engine)}`"
