"""The local driver where the machine is unkind: strangers, zombies, full disks, missing programs, damaged records."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import stat as modes
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.addresses import new_address
from tests.contract.driver_fixtures import (
    PORT,
    LocalWorld,
    alive,
    anyio_backend,  # noqa: F401  (fixture)
    disk_of,
    eventually,
    local_fixture,  # noqa: F401  (fixture)
    memcached_spec,
    ping,
    redis_spec,
)

from cachekeep.clock import SystemClock, boot_id
from cachekeep.compute.contract import File, Key, ProcessSeen, ProcessSpec
from cachekeep.compute.local import LocalDriver, sockets
from cachekeep.compute.local import driver as driver_module
from cachekeep.compute.local.ledger import Ledger, write_atomically
from cachekeep.compute.local.output import LOG_KEPT_BYTES
from cachekeep.compute.local.probe import why_not_free
from cachekeep.compute.local.proc import is_doomed, parse_stat, process_of, sessions_in, stat
from cachekeep.errors import OrderFailed, Unusable

TCP_REPAIR = 19
"""tcp(7) does not name it: linux/tcp.h does."""


async def seen(driver: LocalDriver, key: Key) -> ProcessSeen:
    return (await driver.look([key]))[key]


def python_spec(code: str, name: str = "p-001") -> ProcessSpec:
    """A process that runs ``code`` with its address and port as arguments."""
    address = new_address()
    argv = (sys.executable, "-c", code, address, str(PORT))
    return ProcessSpec(key=("uid-1", name), incarnation=1, argv=argv, address=address, port=PORT)


@pytest.mark.parametrize(("letters", "process"), [("RSDIWKP", "running"), ("Tt", "frozen"), ("ZXx", "exited")])
def test_state_letters(letters: str, process: str) -> None:
    assert {process_of(letter) for letter in letters} == {process}


def test_a_command_name_may_look_like_the_rest_of_the_line() -> None:
    rest = " ".join(["R", "7", "42", "42", *"0" * 7, "3", "4", *"0" * 6, "99", "0"])
    assert parse_stat(f"42 (a) S 1 (b) {rest}")[:] == ("R", 7, 42, 42, 99, 3 + 4)


def test_what_a_release_wrote_that_knew_two_digests_is_known_still(tmp_path: Path) -> None:
    """So nobody is told that a node has to restart; what was never written down is told anew."""
    for name, record in {"old": {"live_digest": "l", "boot_digest": "b"}, "new": {"digests": {"acl": "a"}}, "bare": {}}.items():
        directory = tmp_path / "uid" / name
        directory.mkdir(parents=True)
        (directory / "process.json").write_bytes(msgspec.json.encode({"incarnation": 3, **record}))
    ledger = Ledger(tmp_path, tmp_path)
    ledger.load()
    found = {name: record.digests for name in ("old", "new", "bare") if (record := ledger.get(("uid", name)))}
    assert found == {"old": {"settings": "l", "boot": "b"}, "new": {"acl": "a"}, "bare": {}}


async def test_memcached_starts_and_is_adopted(local: LocalWorld) -> None:
    driver, spec = await local.driver(), memcached_spec()
    await driver.start(spec)
    with socket.create_connection((spec.address, spec.port), timeout=2) as connection:
        connection.sendall(b"version\r\n")
        assert connection.recv(64).startswith(b"VERSION ")
        driver = await local.driver()
        assert (await seen(driver, spec.key)).process == "running"
        connection.sendall(b"version\r\n")
        assert connection.recv(64).startswith(b"VERSION ")


async def test_a_server_that_wants_a_password_or_loads_counts_as_started(local: LocalWorld) -> None:
    driver, spec = await local.driver(), redis_spec(lines="requirepass secret-word")
    await driver.start(spec)
    assert (await seen(driver, spec.key)).process == "running"


async def test_nothing_secret_is_shown(local: LocalWorld) -> None:
    secret = "correct-horse-battery"
    driver, spec = await local.driver(), redis_spec(lines=f"requirepass {secret}")
    plain = msgspec.structs.replace(memcached_spec(), env={"NOTE": "plain"})  # Redis wipes its environment, Memcached does not
    os.environ["CACHEKEEP_TEST_CREDENTIAL"] = secret
    try:
        await driver.start(spec)
        await driver.start(plain)
    finally:
        del os.environ["CACHEKEEP_TEST_CREDENTIAL"]
    for key in (spec.key, plain.key):
        for shown in ("cmdline", "environ"):
            assert secret not in Path(f"/proc/{local.record(key).pid}/{shown}").read_text()
    inherited = {entry.partition("=")[0] for entry in Path(f"/proc/{local.record(plain.key).pid}/environ").read_text().split("\0")}
    assert inherited - {""} <= {"PATH", "LC_ALL", "NOTE", "PWD", "OLDPWD"}
    paths = [*(local.directory / "nodes").rglob("*")]
    assert [path for path in paths if path.stat().st_mode & 0o077] == []
    assert {modes.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()} == {0o700}
    assert [path.name for path in paths if path.is_file() and secret in path.read_text()] == ["redis.conf"]


async def test_a_server_gains_no_rights_and_leaves_no_core(local: LocalWorld) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv")
    driver, spec = await local.driver(), redis_spec()
    await driver.start(spec)
    pid = local.record(spec.key).pid
    assert re.search(r"^NoNewPrivs:\t1$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert re.search(r"^Max core file size +0 ", Path(f"/proc/{pid}/limits").read_text(), re.MULTILINE)


async def test_a_refused_line_of_the_configuration_is_not_quoted(local: LocalWorld) -> None:
    driver, spec = await local.driver(), redis_spec(lines="masterauth correct-horse-battery surplus")
    with pytest.raises(OrderFailed) as refusal:
        await driver.start(spec)
    assert "correct-horse" not in str(refusal.value)
    assert "masterauth" in str(refusal.value)


async def test_the_directory_is_put_where_it_stands(local: LocalWorld) -> None:
    driver, spec = await local.driver(), redis_spec()
    await driver.start(spec)
    directory = local.directory / "nodes" / "uid-1" / "a-001"
    assert local.record(spec.key).argv == ("redis-server", f"{directory}/redis.conf")
    assert f"dir {directory}\n" in (directory / "redis.conf").read_text()
    assert os.readlink(f"/proc/{local.record(spec.key).pid}/cwd") == str(directory)
    log = driver.log_path(spec.key)
    await eventually(lambda: log.exists() and "Ready to accept connections" in log.read_text())


@pytest.mark.parametrize("key", [("..", "a"), ("uid-1", "../a"), ("uid-1", ".gone-a"), ("", "a"), ("uid-1", "a/b")])
async def test_names_lead_nowhere_else(local: LocalWorld, key: Key) -> None:
    driver = await local.driver()
    with pytest.raises(OrderFailed, match="not a name"):
        await driver.start(redis_spec(key=key))
    with pytest.raises(OrderFailed, match="not a name"):
        await driver.erase(key)


@pytest.mark.parametrize("name", ["../x", "process.json", "orders", "log", ".lock", "a/b"])
async def test_files_keep_to_their_directory(local: LocalWorld, name: str) -> None:
    driver = await local.driver()
    with pytest.raises(OrderFailed, match="not a name"):
        await driver.start(redis_spec(files={name: File("x")}))


async def test_a_rewrite_is_all_new_or_all_old(local: LocalWorld) -> None:
    driver, spec = await local.driver(), redis_spec()
    await driver.start(spec)
    await driver.rewrite(spec.key, {"users.acl": File("in {dir} at {listen}")}, digests={"settings": "d2"})
    directory = local.directory / "nodes" / "uid-1" / "a-001"
    assert (directory / "users.acl").read_text() == f"in {directory} at {spec.address}"
    assert modes.S_IMODE((directory / "users.acl").stat().st_mode) == 0o600
    assert {path.name for path in directory.iterdir()} - {"log", ".process.json.draft"} == {
        "orders",
        "process.json",
        "redis.conf",
        "users.acl",
    }


async def test_killed_ones_leave_no_zombie(local: LocalWorld) -> None:
    driver, spec = await local.driver(), redis_spec()
    await driver.start(spec)
    pid = local.record(spec.key).pid
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: stat(pid) is None)


async def test_what_a_process_forked_goes_with_it(local: LocalWorld) -> None:
    """As a background save does: it must not write over the files of the next incarnation."""
    code = (
        "import os, socket, sys, time\n"
        "child = os.fork()\n"
        "if not child: time.sleep(3600)\n"
        "print(child, flush=True)\n"
        "listener = socket.create_server((sys.argv[1], int(sys.argv[2])))\n"
        "while True: listener.accept()\n"
    )
    driver, spec = await local.driver(), python_spec(code)
    await driver.start(spec)
    log = driver.log_path(spec.key)
    await eventually(lambda: log.exists() and log.read_text().count("\n") == 1)
    child = int(log.read_text())
    assert alive(child)
    await driver.stop(spec.key, grace_seconds=0)
    assert stat(child) is None, "killed and reaped: orphans of ours come to us"
    await driver.start(spec)
    await eventually(lambda: log.read_text().count("\n") == 2)
    child = int(log.read_text().split()[-1])
    os.kill(local.record(spec.key).pid, signal.SIGKILL)
    await eventually(lambda: stat(child) is None)


FLOOD = """
import os, socket, sys, threading
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
def flood(connection):
    sent = 0
    while sent < 100_000_000:
        try:
            os.write(1, b"\\x1b[2J" + b"x" * 60_000 + b"\\n")
        except BlockingIOError:
            pass
        sent += 60_000
    connection.sendall(b"done")
while True:
    connection, _ = listener.accept()
    threading.Thread(target=flood, args=(connection,), daemon=True).start() if connection.recv(4) == b"more" else connection.close()
"""


def flooded(spec: ProcessSpec) -> None:
    """Has it print 100 MB; it says when it has."""
    with socket.create_connection((spec.address, spec.port), timeout=30) as asked:
        asked.sendall(b"more")
        assert asked.recv(4) == b"done"


def logged(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("log*"))


async def test_a_log_is_bounded_whoever_reads_it(local: LocalWorld) -> None:
    driver, spec = await local.driver(), python_spec(FLOOD)
    await driver.start(spec)
    directory = driver.log_path(spec.key).parent
    await asyncio.to_thread(flooded, spec)
    await eventually(lambda: logged(directory) > 0)
    assert b"\x1b" not in (directory / "log").read_bytes()
    pid = local.record(spec.key).pid
    await driver.aclose()
    before = logged(directory)
    await asyncio.to_thread(flooded, spec)  # nobody reads: it is not stalled, and nothing grows
    assert logged(directory) == before
    driver = await local.driver()
    assert (await seen(driver, spec.key)).pid == pid
    await eventually(lambda: logged(directory) > before)  # what has waited in the pipe
    for _ in range(3):
        await asyncio.to_thread(flooded, spec)
    assert logged(directory) <= 2 * LOG_KEPT_BYTES
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: stat(pid) is None)
    async with asyncio.timeout(60):
        while "xxx" not in str((await seen(driver, spec.key)).problem):  # the last words of one that was adopted
            await asyncio.sleep(0.02)


async def test_sigterm_is_given_its_time(local: LocalWorld) -> None:
    code = (
        "import signal, socket, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('bye', flush=True), sys.exit(0)))\n"
        "listener = socket.create_server((sys.argv[1], int(sys.argv[2])))\n"
        "while True: listener.accept()\n"
    )
    driver, spec = await local.driver(), python_spec(code)
    await driver.start(spec)
    await driver.stop(spec.key, grace_seconds=30)
    log = driver.log_path(spec.key)
    await eventually(lambda: log.exists() and log.read_text() == "bye\n")


@pytest.mark.parametrize("hurt", [signal.SIGSTOP, None])
async def test_who_does_not_heed_sigterm_is_killed(local: LocalWorld, hurt: signal.Signals | None) -> None:
    code = (
        "import signal, socket, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "listener = socket.create_server((sys.argv[1], int(sys.argv[2])))\n"
        "while True: listener.accept()\n"
    )
    driver, spec = await local.driver(), python_spec(code)
    await driver.start(spec)
    pid = local.record(spec.key).pid
    if hurt:
        os.kill(pid, hurt)
    await driver.stop(spec.key, grace_seconds=0.05)
    assert stat(pid) is None


async def test_a_silent_process_is_ended_and_can_be_tried_again(tmp_path: Path) -> None:
    driver = LocalDriver(tmp_path, SystemClock(), start_deadline_seconds=0.3)
    await driver.open()
    spec = python_spec("import time; print('thinking', flush=True); time.sleep(3600)")
    with pytest.raises(OrderFailed, match=r"accepted no connections .* within 0.3 s: thinking"):
        await driver.start(spec)
    found = await seen(driver, spec.key)
    assert found.process == "exited"
    assert "thinking" in str(found.problem)
    await driver.aclose()
    driver = LocalDriver(tmp_path, SystemClock())
    await driver.open()
    sound = redis_spec("p-001", address=spec.address)
    await driver.start(sound)
    assert ping(sound.address)
    await driver.erase(sound.key)
    await driver.aclose()


async def test_a_stop_ends_a_start_under_way(local: LocalWorld) -> None:
    driver, spec = await local.driver(), python_spec("import time; time.sleep(3600)")
    start = asyncio.create_task(driver.start(spec))
    await eventually(lambda: (local.directory / "nodes/uid-1/p-001/process.json").exists())
    await driver.stop(spec.key, grace_seconds=0)
    with pytest.raises(OrderFailed, match="stopped while it was starting"):
        await start
    assert stat(local.record(spec.key).pid) is None or local.record(spec.key).pid == 0


async def test_callers_may_give_up_at_any_moment(local: LocalWorld) -> None:
    driver = await local.driver()
    for moment in range(0, 100, 5):
        spec = redis_spec(f"a-{moment:03}")
        caller = asyncio.create_task(driver.start(spec))
        for _ in range(moment):
            await asyncio.sleep(0)  # a turn of the event loop
        caller.cancel()
        await asyncio.wait([caller])
        await driver.start(spec)
        assert [pid for pid in sessions_in(driver.log_path(spec.key).parent) if alive(pid)] == [local.record(spec.key).pid]


async def test_anothers_answer_is_not_taken_for_ones_own(local: LocalWorld) -> None:
    """The slow one finds the endpoint free, and taken when it comes to listen there."""
    code = (
        "import socket, sys, time\n"
        "time.sleep(0.5)\n"
        "listener = socket.create_server((sys.argv[1], int(sys.argv[2])))\n"
        "while True: listener.accept()\n"
    )
    slow = python_spec(code)
    driver, quick = await local.driver(), redis_spec(address=slow.address)
    results = await asyncio.gather(driver.start(slow), driver.start(quick), return_exceptions=True)
    assert sum(isinstance(result, OrderFailed) for result in results) == 1
    winner, loser = (slow, quick) if results[0] is None else (quick, slow)
    found = await driver.look([slow.key, quick.key])
    assert found[winner.key].process == "running"
    assert found[loser.key].process != "running"


async def test_a_missing_program_is_named(local: LocalWorld) -> None:
    driver, spec = await local.driver(), redis_spec(argv=("/nowhere/redis-server",))
    with pytest.raises(OrderFailed, match=r"no such program \(/nowhere/redis-server\)"):
        await driver.start(spec)
    assert (await seen(driver, spec.key)).process == "absent"
    assert not (local.directory / "nodes" / "uid-1").exists()


async def test_a_strangers_port_is_refused_and_the_retry_works(local: LocalWorld) -> None:
    driver, spec = await local.driver(), redis_spec()
    with (
        socket.create_server((spec.address, spec.port)),
        pytest.raises(OrderFailed, match=f"{spec.address}:{spec.port}: Address already in use"),
    ):
        await driver.start(spec)
    await driver.start(spec)
    assert ping(spec.address)


async def test_an_address_of_another_machine_is_refused(local: LocalWorld) -> None:
    driver = await local.driver()
    with pytest.raises(OrderFailed, match=r"192\.0\.2\.1:6379: not an address of this machine"):
        await driver.start(redis_spec(address="192.0.2.1"))


async def test_the_engines_own_words_are_passed_on(local: LocalWorld) -> None:
    """The address is free when the driver looks, but the server listens on more than that and finds some of it taken."""
    driver, other = await local.driver(), new_address()
    spec = redis_spec(lines=f"bind {other}")
    with socket.create_server((other, PORT)), pytest.raises(OrderFailed, match=f"{other}:{PORT}: bind: Address already in use"):
        await driver.start(spec)


async def test_a_recycled_pid_is_neither_adopted_nor_killed(local: LocalWorld) -> None:
    spec = redis_spec()
    driver = await local.driver()
    await driver.start(spec)
    await driver.stop(spec.key, grace_seconds=0)
    await driver.aclose()
    with subprocess.Popen(["sleep", "3600"], start_new_session=True) as stranger:
        try:
            at = stat(stranger.pid)
            assert at is not None
            for ticks, boot in ((at.started_ticks - 1, boot_id()), (at.started_ticks, "another-boot")):
                forged = msgspec.structs.replace(local.record(spec.key), pid=stranger.pid, started_ticks=ticks, boot_id=boot)
                write_atomically(local.directory / "nodes/uid-1/a-001/process.json", msgspec.json.encode(forged))
                driver = await local.driver()
                assert (await seen(driver, spec.key)).process == "exited"
                await driver.stop(spec.key, grace_seconds=0)
                await driver.start(spec)
                assert ping(spec.address)
                await driver.stop(spec.key, grace_seconds=0)
                await driver.aclose()  # what it still had to note of the end is written
                assert stranger.poll() is None
            await (await local.driver()).erase(spec.key)
            assert stranger.poll() is None
        finally:
            stranger.kill()


@pytest.mark.parametrize("name", ["process.json", "orders"])
async def test_an_unreadable_record_with_somebody_at_work_is_left_alone(local: LocalWorld, name: str) -> None:
    driver, spec = await local.driver(), redis_spec()
    await driver.start(spec)
    pid = local.record(spec.key).pid
    (local.directory / "nodes/uid-1/a-001" / name).write_text("{")
    driver = await local.driver()
    found = await seen(driver, spec.key)
    assert found.process is None
    assert str(pid) in str(found.problem)
    for order in (driver.start(spec), driver.stop(spec.key, grace_seconds=0), driver.erase(spec.key)):
        with pytest.raises(OrderFailed, match=f"process {pid} works there"):
            await order
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not alive(pid))
    os.waitpid(pid, 0)
    await driver.start(spec)
    assert ping(spec.address)


async def test_an_erasure_cut_short_is_finished(local: LocalWorld) -> None:
    driver, spec = await local.driver(), redis_spec()
    await driver.start(spec)
    await driver.stop(spec.key, grace_seconds=0)
    await driver.aclose()
    directory = local.directory / "nodes/uid-1/a-001"
    directory.rename(directory.with_name(".gone-a-001"))
    driver = await local.driver()
    assert (await seen(driver, spec.key)).process == "absent"
    assert list(directory.parent.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with disk_of("256k", tmp_path / "disk") as path:
        yield path


async def test_a_full_disk_is_said_and_forgiven(small_disk: Path) -> None:
    driver, spec = LocalDriver(small_disk, SystemClock()), redis_spec()
    await driver.open()
    await driver.start(spec)
    assert await driver.admit(spec.key, 1)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    with pytest.raises(OrderFailed, match="No space left"):
        await driver.start(redis_spec("b-001"))
    for order in (2, 3):
        assert await driver.admit(spec.key, order), "for orders there is always room"
    with pytest.raises(OrderFailed, match="No space left"):
        await driver.rewrite(spec.key, {"redis.conf": File("x" * 100_000)}, digests={"settings": "d"})
    found = await seen(driver, spec.key)
    assert (found.process, found.last_order, found.digests) == ("running", 3, {})
    await driver.stop(spec.key, grace_seconds=0)
    assert (await seen(driver, spec.key)).process == "exited"
    filler.unlink()
    await driver.start(spec)
    assert ping(spec.address)
    await driver.erase(spec.key)
    await driver.erase(("uid-1", "b-001"))
    assert [path.name for path in (small_disk / "nodes").iterdir()] == [".lock"]
    await driver.aclose()


async def test_a_read_only_disk_is_said(small_disk: Path) -> None:
    driver, spec = LocalDriver(small_disk, SystemClock()), redis_spec()
    await driver.open()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OrderFailed, match="Read-only file system"):
        await driver.start(spec)
    await driver.aclose()
    with pytest.raises(Unusable, match="Read-only file system"):
        await LocalDriver(small_disk, SystemClock()).open()


async def test_a_foreigner_adopts_and_reports_the_end_of_what_it_did_not_start(local: LocalWorld) -> None:
    """A fresh interpreter, no parent of the process, sees it run, freeze and die."""
    driver, spec = await local.driver(), redis_spec()
    await driver.start(spec)
    pid = local.record(spec.key).pid
    await driver.aclose()
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from cachekeep.clock import SystemClock\n"
        "from cachekeep.compute.local import LocalDriver\n"
        "async def main():\n"
        "    driver, ended = LocalDriver(Path(sys.argv[1]), SystemClock()), asyncio.Event()\n"
        "    driver.on_death(lambda key: ended.set())\n"
        "    await driver.open()\n"
        "    key = ('uid-1', 'a-001')\n"
        "    print((await driver.look([key]))[key].process, flush=True)\n"
        "    await ended.wait()\n"
        "    found = (await driver.look([key]))[key]\n"
        "    print(found.process, found.problem, flush=True)\n"
        "    await driver.aclose()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(local.directory)], stdout=subprocess.PIPE, text=True) as foreigner:
        assert foreigner.stdout is not None
        assert foreigner.stdout.readline() == "running\n"
        os.kill(pid, signal.SIGKILL)
        assert foreigner.stdout.readline().startswith("exited ended (exit code not known")
    driver = await local.driver()
    assert (await seen(driver, spec.key)).process == "exited"


FREEZER = Path("/sys/fs/cgroup/freezer")


@contextlib.contextmanager
def ice(pid: int) -> Iterator[None]:
    """A frozen control group keeps even SIGKILL from taking effect, as a dead disk does."""
    if not os.access(FREEZER, os.W_OK):
        pytest.skip("only the freezer of cgroup v1 holds against SIGKILL")
    group = FREEZER / f"cachekeep-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(pid))
        (group / "freezer.state").write_text("FROZEN")
        yield
    finally:
        (group / "freezer.state").write_text("THAWED")
        deadline = time.monotonic() + 60
        while (group / "cgroup.procs").read_text():
            assert time.monotonic() < deadline, "it is still there"
            time.sleep(0.01)
        group.rmdir()


async def test_a_killed_process_that_the_kernel_does_not_let_go_of_is_stopped_and_its_addresses_are_free(
    local: LocalWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "_KILL_SECONDS", 0.2)
    driver, spec = await local.driver(), redis_spec()
    await driver.start(spec)
    pid = local.record(spec.key).pid
    with socket.create_connection((spec.address, spec.port)) as client, ice(pid):
        await driver.stop(spec.key, grace_seconds=0)
        found = await seen(driver, spec.key)
        assert found.process == "stuck"
        assert "hangs in the kernel" in (found.problem or "")
        assert stat(pid) is not None
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert why_not_free(spec.address, spec.port) is None
        await driver.stop(spec.key, grace_seconds=0)
        with pytest.raises(OrderFailed, match="hangs in the kernel"):
            await driver.start(msgspec.structs.replace(spec, incarnation=2))
        with pytest.raises(OrderFailed, match="hangs in the kernel"):
            await driver.erase(spec.key)
    await eventually(lambda: not alive(pid))
    await driver.start(msgspec.structs.replace(spec, incarnation=2))
    assert (await seen(driver, spec.key)).process == "running"


async def test_one_that_takes_its_time_to_end_is_erased_when_it_has(local: LocalWorld) -> None:
    """As one does that gives much memory back on a busy machine."""
    driver, spec = await local.driver(), redis_spec()
    await driver.start(spec)
    with ice(local.record(spec.key).pid):
        await driver.stop(spec.key, grace_seconds=0)
        erasing = asyncio.create_task(driver.erase(spec.key))
        await asyncio.wait([erasing], timeout=0.1)
        assert not erasing.done()
    await erasing
    assert (await seen(driver, spec.key)).process == "absent"


async def test_one_that_still_holds_its_addresses_is_not_called_stopped(local: LocalWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "_KILL_SECONDS", 0.2)
    monkeypatch.setattr(sockets, "destroy", lambda pid: "its addresses can be freed by root only")
    driver, spec = await local.driver(), redis_spec()
    await driver.start(spec)
    with ice(local.record(spec.key).pid):
        with pytest.raises(OrderFailed, match=r"still there 0\.2 s after SIGKILL: its addresses can be freed by root only"):
            await driver.stop(spec.key, grace_seconds=0)
        assert (await seen(driver, spec.key)).process == "running"
    await driver.stop(spec.key, grace_seconds=0)
    assert (await seen(driver, spec.key)).process == "exited"


async def test_a_process_that_was_not_killed_is_not_doomed(local: LocalWorld) -> None:
    driver, spec = await local.driver(), redis_spec()
    await driver.start(spec)
    pid = local.record(spec.key).pid
    assert not is_doomed(pid)
    with ice(pid):
        assert not is_doomed(pid)
        os.kill(pid, signal.SIGTERM)
        assert not is_doomed(pid)
        os.kill(pid, signal.SIGKILL)
        assert is_doomed(pid)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("0100007F:1F90", ("127.0.0.1", 8080)),
        ("00000000000000000000000001000000:18EB", ("::1", 6379)),
        ("0000000000000000FFFF00000500587F:18EB", ("127.88.0.5", 6379)),
    ],
)
def test_endpoints_as_the_kernel_writes_them(text: str, endpoint: tuple[str, int]) -> None:
    assert sockets.parse_endpoint(text) == endpoint
    assert text in sockets._written(endpoint)


@pytest.mark.skipif(sockets.unable() is not None, reason="needs root and ss")
def test_only_clients_that_nobody_holds_the_other_end_of_are_disconnected() -> None:
    """A process that has just been started where one has ended has its clients already, accepted or not."""
    address = new_address()
    with contextlib.ExitStack() as open_ones:
        server = open_ones.enter_context(socket.create_server((address, PORT)))
        clients = [open_ones.enter_context(socket.create_connection((address, PORT), timeout=20)) for _ in range(3)]
        left, kept = server.accept()[0], open_ones.enter_context(server.accept()[0])
        left.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)  # so that it goes without a word, as behind a cut
        left.close()

        sockets.disconnect(address, PORT)
        with pytest.raises(ConnectionAbortedError):
            clients[0].recv(1)
        late = open_ones.enter_context(server.accept()[0])
        for client, end in zip(clients[1:], (kept, late), strict=True):
            client.sendall(b"x")
            assert end.recv(1) == b"x"


async def test_a_fence_ends_the_grace_of_a_stop_under_way(local: LocalWorld) -> None:
    """A planned stop may take its time; a shard that has to be led meanwhile has none."""
    code = (
        "import signal, socket, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "s = socket.create_server((sys.argv[1], int(sys.argv[2]))); time.sleep(3600)"
    )
    driver, spec = await local.driver(), python_spec(code)
    await driver.start(spec)
    gently = asyncio.create_task(driver.stop(spec.key, grace_seconds=3600))
    await eventually(lambda: bool(driver._stops_wanted.get(spec.key)))
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await driver.stop(spec.key, grace_seconds=0)
        await gently
    assert (await seen(driver, spec.key)).process == "exited"


async def test_a_start_under_way_is_ended_by_no_earlier_decision(local: LocalWorld) -> None:
    code = (
        "import os, socket, sys, time\nwhile not os.path.exists('go'): time.sleep(0.01)\n"
        "s = socket.create_server((sys.argv[1], int(sys.argv[2]))); time.sleep(3600)"
    )
    driver, spec = await local.driver(), msgspec.structs.replace(python_spec(code), decision=7)
    starting = asyncio.create_task(driver.start(spec))
    await eventually(lambda: spec.key in driver.known() and bool(local.record(spec.key).pid))
    with pytest.raises(OrderFailed, match="was started by decision 7"):
        await driver.stop(spec.key, grace_seconds=0, decision=6)
    (driver.log_path(spec.key).parent / "go").touch()
    await starting
    assert (await seen(driver, spec.key)).process == "running"
    await driver.stop(spec.key, grace_seconds=0, decision=7)
    assert (await seen(driver, spec.key)).process == "exited"
