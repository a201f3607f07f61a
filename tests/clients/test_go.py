"""AWS SDK for Go v2, unmodified: what Terraform's provider speaks. Compiled once."""

from __future__ import annotations

import os
from pathlib import Path

from tests.acceptance.installation import Installation
from tests.clients import toolchain

SOURCE = toolchain.HERE / "go"


def _compile(place: Path) -> None:
    # The toolchain that is installed, never one that it would fetch.
    env = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}
    toolchain.run("go", "build", "-o", "story", ".", cwd=place, env=env, seconds=600)


@toolchain.slow
@toolchain.needs("go")
def test_story(installation: Installation) -> None:
    sources = {name: (SOURCE / name).read_bytes() for name in ("go.mod", "go.sum", "main.go")}
    program = toolchain.made_once("go", sources, _compile)
    told = toolchain.run(program / "story", cwd=program, env=installation.aws_environment())
    assert told.count("ok ") == 5, told
