"""``cachekeep up``."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import click

from cachekeep.cli import data_dir_flag, options, own_name, settings_of
from cachekeep.cli.engines import how_to_get, how_to_mend, missing


@click.command(short_help="Serve the API and keep the caches, in the foreground.")
@options(
    "data_dir",
    "host",
    "port",
    "auth",
    "address_pool",
    "database",
    "root_key",
    "tls",
    "tls_names",
    "ca_cert",
    "ca_key",
    "audit_bytes_max",
    "vault",
    "bucket",
    "verify_bytes",
    "region",
    "account",
    "zone_count",
    "overcommit",
    "any_subnet",
    "default_ingress",
    "build_engines",
    "hold_seconds",
    "silence_seconds",
    "command_seconds",
    "script_seconds",
    "linger_seconds",
    "fence",
    "loss_budget_seconds",
    "loss_budget_bytes",
    "test_failovers_per_day_max",
    "log_level",
    "log_format",
)
def up(**flags: Any) -> None:
    """Serve the API and keep the caches, in the foreground, until Ctrl-C. Caches outlive it; started again it takes them back.

    Every option can also be given in the environment, as CACHEKEEP_PORT for --port.
    """
    settings = settings_of(flags)
    from cachekeep.app import App, raise_open_files
    from cachekeep.cli import logs
    from cachekeep.compute.local import clients

    logs.set_up(settings.log_level, settings.log_format)
    raise_open_files()
    going_on = 0

    def ready(app: App) -> None:
        if settings.log_format == "json":
            logs.event("ready", url=app.url, data_dir=str(settings.data_dir))
            return
        builds = app.catalogue.builds
        found = ", ".join(dict.fromkeys(f"{b.engine} {b.version}{'' if b.tls else ' (no TLS)'}" for b in builds))
        click.echo(f"Cachekeep serves the ElastiCache API at {app.url} ({settings.region}), data in {settings.data_dir}")
        click.echo(f'  use it:   eval "$({own_name()} env{data_dir_flag(settings)})"   then aws, boto3, Terraform … as ever')
        click.echo(f"  engines:  {found or 'none'}")
        for b in builds:
            if b.unsafe:
                holes = ", ".join(h.id for h in b.holes)
                click.echo(f"  unsafe:   {b.engine} {b.version} has {holes} – {how_to_mend(b.engine, app.catalogue)}")
        for engine in missing(app.catalogue):
            click.echo(f"  missing:  {engine} – {how_to_get(engine, app.catalogue)}")
        for sentence in (*app.catalogue.lacks, *clients.lacks()):
            click.echo(f"  lacks:    {sentence}")
        spec = app.to_build()
        if spec is not None:
            click.echo(
                f"  building: {spec} with TLS, in the background; `cachekeep engines{data_dir_flag(settings)}` says how far it is"
            )
        if settings.auth == "open":
            click.echo("  open:     every request is taken, signed or not (--auth open)")
        click.echo("  Ctrl-C stops the control plane; caches go on.")
        sys.stdout.flush()

    async def serve() -> None:
        nonlocal going_on
        going_on = await App(settings).run(ready)

    try:
        import uvloop

        factory: Any = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve())
    if settings.log_format == "json":
        logs.event("stopped", processes_that_go_on=going_on)
    elif going_on:
        processes = "1 process goes" if going_on == 1 else f"{going_on} processes go"
        click.echo(
            f"Cachekeep has stopped; {processes} on serving. `cachekeep up{data_dir_flag(settings)}` takes them back, "
            f"`cachekeep down --engines{data_dir_flag(settings)}` ends them."
        )
    else:
        click.echo("Cachekeep has stopped; no cache was running.")
