"""``cachekeep allow``: which users of this machine may connect to a cache."""

from __future__ import annotations

import json
import pwd
from typing import Any

import click

from cachekeep.cli import options, settings_of
from cachekeep.cli.client import call
from cachekeep.errors import Unusable


@click.command(short_help="Let a user of this machine connect to a cache, by a security group.")
@click.argument("name")
@click.option("--uid", "user", metavar="USER", help="Name or number of the user. [shows who may]")
@click.option("--group", default="", metavar="GROUP", help="Id or name of the security group, where more than one is let in.")
@click.option("--revoke", is_flag=True, help="The user may no longer.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@options("data_dir")
def allow(name: str, user: str | None, group: str, revoke: bool, as_json: bool, **flags: Any) -> None:
    """Make a user of this machine a member of the security group that is let in to NAME. It is so within a second, and for
    connections that exist. Without --uid: who is a member."""
    settings = settings_of(flags)
    if user is None:
        if group or revoke:
            raise click.UsageError("--group and --revoke are about a user: name one with --uid.")
        found = call(settings, "allow", name=name)["groups"]
        if as_json:
            click.echo(json.dumps(found, indent=2))
            return
        for each in found:
            click.echo(f"{each['name']} ({each['id']}): {', '.join(map(_told, each['users'])) or 'no user of this machine'}")
        if not found:
            click.echo(f"No group is let in to {name}. `aws ec2 describe-security-groups` shows what else is.")
        return
    answer = call(settings, "allow", name=name, user=_number(user), group=group, revoke=revoke)
    click.echo(json.dumps(answer, indent=2) if as_json else f"{name}: {answer['because']}.")


def _number(user: str) -> int:
    """Raises ``Unusable``."""
    if user.isascii() and user.isdigit():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise Unusable(
            f"this machine has no user {user}. `getent passwd` lists those that it has; numbers can be given, too."
        ) from None


def _told(user: int) -> str:
    try:
        return f"{pwd.getpwuid(user).pw_name} ({user})"
    except KeyError:
        return str(user)
