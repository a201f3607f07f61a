"""What crosses the driver's door names programs, and nothing of the machine on which the control plane happens to be."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.engines.servers import PASSWORD, build_of, cache_of, node_of

from cachekeep.compute.contract import ProcessSpec
from cachekeep.control.execute import specs
from cachekeep.engines.catalogue import Build, Catalogue
from cachekeep.errors import EngineMissing
from cachekeep.model import Cache, Front, Node, Shard
from cachekeep.network.fronts import LocalFronts, programs

PATH = re.compile(r"(?<![\w.}])/(?!/)\w+")
"""Something that begins at the root, as ``{dir}/server.conf`` does not."""


def _nowhere(key: tuple[str, str]) -> Path:
    raise AssertionError(f"nobody asks where {key} is")


def _spec_of(kind: str) -> tuple[ProcessSpec, Catalogue]:
    build: Build = build_of("memcached", 1) if kind in ("memcached", "discovery") else build_of("valkey", 9)
    node: Node = replace(node_of(build, "demo-001"), version="1.6.17" if build.engine == "memcached" else build.version[:3])
    cache: Cache = cache_of(
        node, shards=(Shard(id="0001", primary="demo-001"),), cluster_mode="enabled" if kind == "cluster" else "disabled"
    )
    here = Catalogue([build])
    if kind in ("discovery", "compatible", "balancer"):
        front = Front(name=kind, kind=kind, address="127.0.0.9", port=6379)  # type: ignore[arg-type]
        return LocalFronts(_nowhere).spec(cache, front, (node,)), here
    return specs(here, lambda cache: PASSWORD)(cache, node), here


@pytest.mark.parametrize("kind", ["valkey", "cluster", "memcached", "discovery", "compatible", "balancer"])
def test_a_spec_has_no_path_of_this_machine(kind: str) -> None:
    spec, here = _spec_of(kind)
    said = " ".join([*spec.argv, *spec.env.values(), *(str(file.content) for file in spec.files.values())])
    assert PATH.findall(said) == []
    assert sys.executable not in said
    assert "{listen}" in said, "where it listens is the driver's to know"
    assert os.getcwd() not in said
    try:
        program = programs(lambda: here)(spec.argv[0])[0]
    except EngineMissing as error:
        pytest.skip(f"needs {error}")
    assert os.access(program, os.X_OK), "this machine knows what is meant"


def test_a_path_is_found() -> None:
    assert PATH.findall("a /usr/bin/x {dir}/server.conf 127.0.0.1:80") == ["/usr"]


def test_a_build_that_is_gone_is_not_taken_for_another() -> None:
    with_tls = Build(engine="valkey", version="9.1.2", server="/one", tls=True)
    without = Build(engine="valkey", version="9.1.2", server="/two")
    here = Catalogue([with_tls, without])
    assert [here.command(b.program) for b in (with_tls, without)] == [("/one",), ("/two",)]
    assert Catalogue([with_tls]).command(without.program) == ()
