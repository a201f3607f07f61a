"""AWS SDK for JavaScript v3, unmodified: it reads lists by the wrapper's name in the model, where boto3 takes any."""

from __future__ import annotations

import os
from pathlib import Path

from tests.acceptance.installation import Installation
from tests.clients import toolchain

SOURCE = toolchain.HERE / "javascript"


def _install(place: Path) -> None:
    toolchain.run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", cwd=place)


@toolchain.needs("node", "npm")
def test_story(installation: Installation) -> None:
    locked = {name: (SOURCE / name).read_bytes() for name in ("package.json", "package-lock.json")}
    packages = toolchain.made_once("javascript", locked, _install)
    # Imports are looked for beside the program that runs, so it runs beside the packages.
    program = packages / f"story-{os.getpid()}.mjs"
    program.write_bytes((SOURCE / "story.mjs").read_bytes())
    try:
        told = toolchain.run("node", program, cwd=packages, env=installation.aws_environment())
    finally:
        program.unlink()
    assert "# fail 0" in told
    assert "# pass 0" not in told, "nothing ran"
