"""Zones with networks of their own: reachable, cut, healed; addresses move at once."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.contract.driver_fixtures import (
    PORT,
    anyio_backend,  # noqa: F401  (fixture)
    ping,
    redis_spec,
)

from cachekeep.clock import SystemClock
from cachekeep.compute.contract import ProcessSpec
from cachekeep.compute.local import LocalDriver, ZoneNets
from cachekeep.errors import OrderFailed, Unusable

needs = [program for program in ("ip", "nft", "nsenter") if shutil.which(program) is None] + ["root"] * (os.geteuid() != 0)
pytestmark = pytest.mark.skipif(bool(needs), reason=f"needs {', '.join(needs)}")


@pytest.fixture
def make() -> Iterator[Callable[[], ZoneNets]]:
    number = os.getpid() % 256
    made: list[ZoneNets] = []

    def one() -> ZoneNets:
        nets = ZoneNets(f"t{number}", ipaddress.IPv4Network(f"10.213.{number}.0/24"), ["a", "b"])
        nets.open()
        made.append(nets)
        return nets

    yield one
    made[0].destroy()
    left = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert f"ck-t{number}-" not in left


def address(nets: ZoneNets, number: int) -> str:
    return str(ipaddress.IPv4Address(nets.own_address) - 254 + number)


def spec_in(nets: ZoneNets, zone: str, number: int) -> ProcessSpec:
    home = address(nets, number)
    return redis_spec(f"{zone}-{number}", address=home, zone=zone, lines=f"protected-mode no\nbind {home}")


def silent(home: str) -> bool:
    """Neither accepted nor refused."""
    with socket.socket() as connection:
        connection.settimeout(0.2)
        try:
            connection.connect((home, PORT))
        except TimeoutError:
            return True
        except OSError:
            return False
    return False


async def test_cut_and_healed(make: Callable[[], ZoneNets], tmp_path: Path) -> None:
    nets = make()
    driver = LocalDriver(tmp_path, SystemClock(), zones=nets)
    await driver.open()
    a, b = spec_in(nets, "a", 1), spec_in(nets, "b", 2)
    try:
        await driver.start(a)
        await driver.start(b)
        assert ping(a.address)
        assert ping(b.address)
        with socket.create_connection((a.address, PORT), timeout=5) as client:
            nets.cut("a")
            assert silent(a.address)
            assert ping(b.address)
            assert (await driver.look([a.key]))[a.key].process == "running"
            client.sendall(b"PING\r\n")
            nets.heal("a")
            assert client.recv(16) == b"+PONG\r\n", "what was under way arrives when the cut ends"
        nets.cut_node(b.address)
        nets.cut_node(b.address)
        assert silent(b.address)
        assert ping(a.address)
        nets.heal_node(b.address)
        nets.heal_node(b.address)
        assert ping(b.address)
    finally:
        await driver.erase(a.key)
        await driver.erase(b.key)
        await driver.aclose()
    with pytest.raises(OrderFailed, match="is in no zone"):
        nets.cut_node(a.address)


async def test_an_address_moves_at_once(make: Callable[[], ZoneNets], tmp_path: Path) -> None:
    nets = make()
    driver = LocalDriver(tmp_path, SystemClock(), zones=nets)
    await driver.open()
    endpoint = address(nets, 100)
    specs = {zone: spec_in(nets, zone, number) for number, zone in enumerate("ab", 1)}

    def owner() -> str | None:
        with socket.create_connection((endpoint, PORT), timeout=0.2) as client:
            client.sendall(b"CONFIG GET dir\r\n")
            return client.recv(4096).decode().split("\r\n")[4].rsplit("/", 1)[-1]

    try:
        for spec in specs.values():
            await driver.start(spec)
        for zone in "abab":
            nets.claim(endpoint, zone)
            with socket.create_connection((specs[zone].address, PORT), timeout=2) as admin:
                admin.sendall(f'CONFIG SET bind "{specs[zone].address} {endpoint}"\r\n'.encode())
                assert admin.recv(64) == b"+OK\r\n"
            assert owner() == specs[zone].key[1]
    finally:
        for spec in specs.values():
            await driver.erase(spec.key)
        await driver.aclose()


async def test_networks_outlive_the_control_plane(make: Callable[[], ZoneNets], tmp_path: Path) -> None:
    nets = make()
    driver = LocalDriver(tmp_path, SystemClock(), zones=nets)
    await driver.open()
    spec = spec_in(nets, "a", 1)
    await driver.start(spec)
    with socket.create_connection((spec.address, PORT), timeout=5) as client:
        await driver.aclose()
        nets.cut("a")
        nets.close()
        nets = make()
        driver = LocalDriver(tmp_path, SystemClock(), zones=nets)
        await driver.open()
        client.sendall(b"PING\r\n")
        assert client.recv(16) == b"+PONG\r\n"
        await driver.start(spec)
        await driver.erase(spec.key)
        await driver.aclose()


def test_half_made_networks_are_made_anew(make: Callable[[], ZoneNets]) -> None:
    nets = make()
    namespace = nets.enter("b")[1].rsplit("/", 1)[-1]
    nets.close()
    subprocess.run(["ip", "netns", "del", namespace], check=True)
    nets = make()
    nets.claim(address(nets, 1), "b")


def test_a_tag_must_fit_into_an_interface_name() -> None:
    with pytest.raises(Unusable, match="at most 6"):
        ZoneNets("too-long-by-far", ipaddress.IPv4Network("10.0.0.0/24"), ["a"])
