"""A directory whose files are believed: programs to run, which process to signal, which key is root's."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

from cachekeep.errors import Unusable


def refuse_shared(directory: Path) -> None:
    """Raises ``Unusable`` if anybody but us and root could change what is in a directory, or put another in its place.

    As sshd(8) does with ``StrictModes``: looked at are the directory and all above it. One in which everybody may write is no
    danger to what is below it where it is sticky, as /tmp is. Raises ``OSError``.
    """
    place = directory.resolve(strict=True)
    for path in (place, *place.parents):
        seen = path.stat()
        sticky = path != place and seen.st_mode & stat.S_ISVTX
        if seen.st_mode & stat.S_IWOTH and not sticky:
            raise _refused(directory, path, "everybody may write in it", f"chmod o-w {path}")
        if seen.st_mode & stat.S_IWGRP and not sticky and not _is_alone(seen.st_gid, seen.st_uid):
            raise _refused(directory, path, f"its group ({_group(seen.st_gid)}) may write in it", f"chmod g-w {path}")
        # In a container whose users are mapped, the owner of the root directory is nobody that there is.
        if seen.st_uid not in (0, os.geteuid()) and path != Path("/"):
            raise _refused(directory, path, f"it is {_user(seen.st_uid)}'s", f"chown {os.geteuid()} {path}")


def _refused(directory: Path, path: Path, why: str, remedy: str) -> Unusable:
    return Unusable(
        f"data directory {directory} cannot be used: others could change what is in it, for of {path}, {why}. Nothing was changed. "
        f"Put that right (such as: {remedy}), or choose another with --data-dir."
    )


def _is_alone(group: int, owner: int) -> bool:
    """Whether the group is the owner's own, with nobody else in it."""
    try:
        user = pwd.getpwuid(owner)
        return user.pw_gid == group and set(grp.getgrgid(group).gr_mem) <= {user.pw_name}
    except KeyError:
        return False


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
