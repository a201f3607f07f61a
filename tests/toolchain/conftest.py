"""Small programs in place of the distribution's: a build takes a moment and goes the whole road."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.acceptance.conftest import another

from cachekeep.toolchain import build

__all__ = ["another"]

SERVER = '#!/bin/sh\n[ "$1" = --version ] && echo "Valkey server v=9.1.2 malloc=jemalloc-5.3.0 bits=64" || echo "{tls}"\n'
HAS_TLS = "# No tls-cert-file configured!"
TARGETS = "Created-By: Packages\nRelease: {codename}\nComponent: main\nRepo-URI: http://mirror.example/debian/\n"


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directory of the programs. ``make`` copies ``server`` to where a compilation would leave it."""
    programs = tmp_path / "programs"
    programs.mkdir()
    codename = build._os_release().get("VERSION_CODENAME", "")
    (tmp_path / "targets").write_text(TARGETS.format(codename=codename))
    (tmp_path / "server").write_text(SERVER.format(tls=HAS_TLS))
    bodies = {
        "apt-get": f'case "$*" in indextargets) cat {tmp_path}/targets;; *source*) touch valkey_9.1.2-1.dsc;; esac',
        "apt-cache": "printf 'Package: valkey\\nVersion: 9.1.2-1\\n'",
        "dpkg-source": "for last; do :; done; mkdir -p $last/src; touch $last/src/a.c $last/src/b.c; echo BSD > $last/COPYING",
        "make": f"echo CC a.o; echo CC b.o; for p in server cli benchmark; do install -m 755 {tmp_path}/server src/valkey-$p; done",
        "gcc": "true",
        "pkg-config": "true",
        "strip": "true",
    }
    for name, body in bodies.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    if not codename:
        pytest.skip("only where /etc/os-release has a code name")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return programs
