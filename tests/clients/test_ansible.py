"""Ansible's ElastiCache modules, unmodified, in an environment of their own."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.acceptance.installation import Installation
from tests.clients import toolchain

SOURCE = toolchain.HERE / "ansible"


def _install(place: Path) -> None:
    python = place / "venv/bin/python"
    if uv := shutil.which("uv", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin"):
        toolchain.run(uv, "venv", "-q", "--relocatable", "--python", sys.executable, "venv", cwd=place)
        toolchain.run(uv, "pip", "install", "-q", "--python", python, "-r", "requirements.txt", cwd=place, seconds=600)
    else:
        toolchain.run(sys.executable, "-m", "venv", "venv", cwd=place)
        toolchain.run(python, "-m", "pip", "install", "-q", "-r", "requirements.txt", cwd=place, seconds=600)


@toolchain.slow
def test_playbook(installation: Installation, tmp_path: Path) -> None:
    made = toolchain.made_once("ansible", {"requirements.txt": (SOURCE / "requirements.txt").read_bytes()}, _install)
    # Of a family that the module cannot name when it makes a group.
    installation.client().create_cache_parameter_group(
        CacheParameterGroupName="ansible-parameters", CacheParameterGroupFamily="memcached1.6", Description="d"
    )
    env = installation.aws_environment() | {
        "ANSIBLE_HOME": str(tmp_path),
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
        "ANSIBLE_NOCOLOR": "true",
        "LC_ALL": "C.UTF-8",
    }
    python, playbook = made / "venv/bin/python", made / "venv/bin/ansible-playbook"
    interpreter = ("-e", f"ansible_python_interpreter={python}")
    told = toolchain.run(python, playbook, *interpreter, SOURCE / "playbook.yml", cwd=tmp_path, env=env, seconds=300)
    assert "failed=0" in told
    assert "unreachable=0" in told
