"""The command ``cachekeep``. Each subcommand is imported when it is called, so that ``--help`` is there at once."""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from cachekeep.errors import CachekeepError, Unusable
from cachekeep.settings import Settings, default_data_dir, read

NAME: Final = "cachekeep"
_COMMANDS: Final = {
    "up": ("up:up", "Serve the API and keep the caches, in the foreground."),
    "env": ("env:env", 'Settings for every AWS SDK: eval "$(cachekeep env)".'),
    "ca": ("ca:ca", "The certificates by which clients know caches with TLS."),
    "status": ("watch:status", "Caches, nodes, roles, endpoints, health."),
    "explain": ("watch:explain", "What the planner would do with a cache now, and why."),
    "snapshots": ("snapshots:snapshots", "Snapshots, and whether each can be restored."),
    "failover": ("watch:failover", "Make another node the primary."),
    "rotate-credentials": ("watch:rotate", "Change the passwords of Cachekeep's own users."),
    "allow": ("allow:allow", "Let a user of this machine connect to a cache, by a security group."),
    "rotate-ca": ("ca:rotate", "Go from one certificate authority to another, step by step."),
    "chaos": ("chaos:chaos", "Harm a cache on purpose, and see what its clients feel."),
    "timeline": ("past:timeline", "Which moments of a cache can be brought back."),
    "at": ("past:at", "Read a cache as it was at a time."),
    "history": ("past:history", "Each write to a key."),
    "top": ("top:top", "What nodes do right now: operations, hits, memory, clients."),
    "prometheus-config": ("prometheus:config", "What Prometheus needs to be told to scrape all nodes."),
    "engines": ("engines:engines", "Installed engines and what they can do; install more."),
    "down": ("down:down", "Stop the control plane; with --engines, the caches too."),
}


class _Lazy(click.Group):
    """Knows names and one-line helps; imports a command's module only to run it or to show its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(f"cachekeep.cli.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cachekeep")
def cachekeep() -> None:
    """Managed caches on your own machines: the ElastiCache API over real Valkey, Redis and Memcached servers."""


def main() -> NoReturn:
    """Run the command line. What Cachekeep refuses on purpose becomes one line and exit code 1, never a trace."""
    try:
        code: Any = cachekeep(standalone_mode=False, prog_name="cachekeep")
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except CachekeepError as error:
        click.echo(f"cachekeep: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on: no second error at exit
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def confirm(question: str, otherwise: str) -> None:
    """Go on only if the user agrees. Raises ``Unusable`` with ``otherwise``: what has not happened."""
    if not click.confirm(question):
        raise Unusable(otherwise)


def options(*fields: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options of a command that become fields of ``Settings``. Unset ones fall to ``CACHEKEEP_…``, then to the default."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(fields):
            flag = f"--{field.replace('_', '-')}"
            if field in _SWITCHES:
                command = click.option(f"{flag}/--no-{flag[2:]}", field, default=None, help=_HELP[field])(command)
            else:
                command = click.option(flag, field, metavar=_METAVARS.get(field), default=None, help=_HELP[field])(command)
        return command

    return add


def settings_of(flags: dict[str, Any]) -> Settings:
    """Settings from flags and this process's environment. Raises ``Unusable``."""
    try:
        return read(os.environ, flags)
    except ValueError as error:
        raise Unusable(str(error)) from None


def own_name() -> str:
    """What a shell has to be told to run this very program: its name, or its path where that name is nobody's or another's."""
    program = Path(sys.argv[0]).absolute()
    if program.name != NAME or ((found := shutil.which(NAME)) is not None and Path(found).resolve() == program.resolve()):
        return NAME
    return shlex.quote(str(program))


def data_dir_flag(settings: Settings) -> str:
    """What a command needs beside its name to be about this installation: nothing where it is the default one."""
    if settings.data_dir == default_data_dir(os.environ):
        return ""
    return f" --data-dir {shlex.quote(str(settings.data_dir))}"


_SWITCHES: Final = frozenset({"any_subnet", "build_engines", "overcommit", "tls"})
_METAVARS: Final = {
    "data_dir": "DIR",
    "host": "ADDRESS",
    "port": "PORT",
    "auth": "[enforce|open]",
    "address_pool": "CIDR",
    "database": "URL",
    "default_ingress": "[everybody|members]",
    "root_key": "FILE",
    "tls_names": "NAMES",
    "ca_cert": "FILE",
    "ca_key": "FILE",
    "audit_bytes_max": "BYTES",
    "vault": "URL",
    "bucket": "NAME=URL",
    "verify_bytes": "BYTES",
    "zone_count": "N",
    "hold_seconds": "S",
    "log_level": "LEVEL",
    "log_format": "[plain|json]",
    "silence_seconds": "S",
    "command_seconds": "S",
    "script_seconds": "S",
    "linger_seconds": "S",
    "fence": "[confirm|starve]",
    "loss_budget_seconds": "S",
    "loss_budget_bytes": "BYTES",
    "test_failovers_per_day_max": "N",
}
_HELP: Final = {
    "data_dir": "Where everything is kept. [$XDG_DATA_HOME/cachekeep]",
    "host": "Address to serve on. [127.0.0.1]",
    "port": "Port to serve on; 0 takes a free one. [8379]",
    "auth": "Whether requests must be signed by a known key. [enforce]",
    "address_pool": "Addresses for nodes and endpoints: a network, or a list with commas. [127.77.0.0/16]",
    "database": "PostgreSQL URL; best given as CACHEKEEP_DATABASE, which no process list shows. [SQLite in the data directory]",
    "root_key": "The key under which secrets are kept, for one that lives elsewhere. [sealing.key in the data directory]",
    "tls": "Serve the API by TLS; without, it is served on this machine alone. [off]",
    "tls_names": "Names and addresses by which the API is called beside its host, with commas between.",
    "ca_cert": "The certificate authority that issues certificates of caches, with those above it. [one that is made here]",
    "ca_key": "Its key.",
    "audit_bytes_max": "How much of what was asked of the API is kept on record (audit in the data directory). [268435456]",
    "vault": "Where snapshots are kept: a directory, or s3://, gs://, az:// with the usual environment. [in the data directory]",
    "bucket": "What CopySnapshot may call a bucket, and where it is; several with commas. [none]",
    "verify_bytes": "The most memory for an engine into which a snapshot is restored for a trial; larger ones are read. [1 GiB]",
    "region": "The region that this installation is. [us-east-1]",
    "account": "The account that this installation is. [000000000000]",
    "zone_count": "How many availability zones there are. [3]",
    "any_subnet": "Take foreign ids of subnets for zones of this installation, and of security groups for its one. [off]",
    "default_ingress": "Who the default security group lets in until its rules are changed; at AWS only its members. [everybody]",
    "build_engines": "Build a Valkey that is safe and has TLS, in the background, where none is installed. [off]",
    "overcommit": "Take on more node memory than the machine has. [on]",
    "hold_seconds": "How long a Describe of one cache in transition is held open. [8]",
    "log_level": "debug, info, warning or error. [info]",
    "log_format": "How log lines look. [plain]",
    "silence_seconds": "How long a primary may answer nothing before it counts as hung; a client's script may have it silent "
    "for 5. [15]",
    "command_seconds": "How long it may while its process is at work, as with one long command. [300]",
    "script_seconds": "How long a node may be busy with a client's script before that is ended, unless it has written. [15]",
    "linger_seconds": "How long a shard without slots still sends clients on before it goes, and addresses that were given up stay "
    "unused. [35]",
    "fence": "Succeed a hung primary once it is confirmed stopped; or, where that cannot be had, once it must refuse writes. "
    "[confirm]",
    "loss_budget_seconds": "Of how many seconds acknowledged writes may be lost by a promotion that nobody asked for. [0]",
    "test_failovers_per_day_max": "How many node groups TestFailover takes in 24 hours; AWS takes 15. [no limit]",
    "loss_budget_bytes": "How far behind what was last heard of its primary a replica may be and still be promoted by itself. [0]",
}
