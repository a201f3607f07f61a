"""As which user of this machine a process runs that refuses to be root."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd


@functools.cache
def memcached_account() -> str | None:
    """Memcached refuses to be root: the account that its package made, or nobody's."""
    if os.geteuid() != 0:
        return None
    for name in ("memcache", "memcached", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None
