"""The command: what it prints, what it refuses, how it ends."""

from __future__ import annotations

import datetime as dt
import http.server
import json
import logging
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from tests.acceptance.installation import COMMAND, Installation, created, deleted, eventually

from cachekeep.cli import logs, own_name
from cachekeep.cli.client import call
from cachekeep.errors import OrderFailed
from cachekeep.security import keys
from cachekeep.settings import ENDPOINT_FILE, ServedAt, Settings


@pytest.fixture(scope="module")
def group(installation: Installation) -> Iterator[str]:
    client = installation.client()
    created(client, "shown", NumCacheClusters=2)
    yield "shown"
    deleted(client, "shown")


def refused(installation: Installation, *options: str) -> str:
    """``up`` ends by itself with one line that says why; returns it."""
    before = installation.log.stat().st_size if installation.log.exists() else 0
    assert installation.popen(*options).wait(timeout=60) == 1
    said = installation.log.read_bytes()[before:].decode()
    assert len(said.splitlines()) == 1, said
    assert said.startswith("cachekeep: ")
    return said


# -- help and settings


def test_help_loads_neither_database_nor_aws() -> None:
    code = "import sys; from cachekeep.cli import cachekeep; cachekeep(['--help'], standalone_mode=False); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "Serve the API" in loaded
    assert not {"sqlalchemy", "botocore", "rich", "uvicorn", "asyncio"} & set(loaded.split())


@pytest.mark.parametrize(
    "command", ["up", "env", "status", "snapshots", "explain", "failover", "rotate-credentials", "engines", "down"]
)
def test_every_command_has_help(command: str) -> None:
    shown = subprocess.run([COMMAND, command, "--help"], capture_output=True, text=True, check=True).stdout
    assert f"Usage: cachekeep {command}" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--auth", "maybe"), "--auth 'maybe' cannot be used: it must be enforce or open."),
        (("--port", "70000"), "--port '70000' cannot be used: it must be a whole number, at least 0 and at most 65535."),
        (("--silence-seconds", "soon"), "--silence-seconds 'soon' cannot be used: it must be a number, more than 0."),
        (("--test-failovers-per-day-max", "-1"), "it must be a whole number, at least 0."),
        (("--region", "here"), "--region 'here' cannot be used: it must look like us-east-1."),
        (("--database", "postgresql://user:hunter2@127.0.0.1:1/db"), "Start the database, or name another with --database."),
        (("--data-dir", "/proc/nowhere"), "Choose another with --data-dir."),
        (("--address-pool", "127.0.0.1/8x"), "address pool '127.0.0.1/8x'"),
        (("--address-pool", "203.0.113.0/24"), "of the address pool 203.0.113.0/24 is not an address of this machine"),
        (("--address-pool", "127.0.0.9,203.0.113.7"), "203.0.113.7 of the address pool"),
        (("--host", "203.0.113.7"), "203.0.113.7"),
        (("--database", "mysql://user:hunter2@host/db"), "only SQLite files and PostgreSQL"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(another: Callable[..., Installation], options: tuple[str, ...], words: str) -> None:
    said = refused(another(), *options)
    assert words in said
    assert "hunter2" not in said


def test_the_environment_sets_what_flags_do_not(another: Callable[..., Installation]) -> None:
    one = another()
    environment = one.environment() | {"CACHEKEEP_PORT": "8400", "CACHEKEEP_REGION": "eu-west-1"}
    asked = [COMMAND, "env", "--data-dir", str(one.data_dir), "--format", "json"]
    found = json.loads(subprocess.run(asked, capture_output=True, env=environment, check=True).stdout)
    assert found["AWS_ENDPOINT_URL"] == "http://127.0.0.1:8400"
    assert found["AWS_REGION"] == found["AWS_DEFAULT_REGION"] == "eu-west-1"
    bad = subprocess.run(asked, capture_output=True, text=True, env=environment | {"CACHEKEEP_PORT": "x"})
    assert bad.returncode == 1
    assert bad.stderr.startswith("cachekeep: CACHEKEEP_PORT 'x' cannot be used")


# -- env


def test_env_makes_the_key_once_for_nobody_else_to_read(another: Callable[..., Installation]) -> None:
    one = another()
    first = one.run("env").stdout
    assert one.run("env").stdout == first
    kept = one.data_dir / "credentials.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    key = json.loads(kept.read_text())
    assert len(key["access_key"]) == 20
    assert key["access_key"].startswith("AKIA")
    assert len(key["secret_key"]) == 40
    assert f"export AWS_SECRET_ACCESS_KEY={key['secret_key']}" in first.replace("'", "")
    assert "AWS_PROFILE" in first.splitlines()[-1]
    fish = one.run("env", "--format", "fish").stdout
    assert "set -gx AWS_ENDPOINT_URL" in fish
    kept.chmod(0o644)
    one.run("env")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_damaged_key_is_left_as_it_is(another: Callable[..., Installation]) -> None:
    one = another()
    one.run("env")
    (one.data_dir / "credentials.json").write_text("{")
    assert "credentials.json is damaged" in refused(one)
    assert (one.data_dir / "credentials.json").read_text() == "{"


# -- what is running


def test_status_shows_nodes_roles_endpoints_and_the_sentence(installation: Installation, group: str) -> None:
    shown = installation.run("status").stdout
    found = installation.status(group)
    assert found["status"] == "available"
    assert {n["role"] for n in found["nodes"]} == {"primary", "replica"}
    for text in (group, "shown-001", "shown-002", "in sync", *found["endpoints"].values(), found["because"]):
        assert text in shown
    unknown = installation.run("status", "nobody", check=False)
    assert (unknown.returncode, unknown.stderr[:40]) == (1, "cachekeep: There is no cache 'nobody'. `cachek"[:40])


def test_status_shows_what_runs_and_what_it_shall_become(installation: Installation, group: str) -> None:
    client = installation.client()
    eventually(lambda: installation.status(group)["status"] == "available")
    runs = installation.status(group)["node_type"]
    other = "cache.t3.small" if runs != "cache.t3.small" else "cache.t3.medium"
    away = (dt.datetime.now(dt.UTC) + dt.timedelta(days=3)).strftime("%a").lower()
    window = f"{away}:05:00-{away}:06:00"
    client.modify_replication_group(
        ReplicationGroupId=group, CacheNodeType=other, PreferredMaintenanceWindow=window, ApplyImmediately=False
    )
    assert installation.status(group)["node_type"] == runs
    assert f"{runs} → {other} in the window" in installation.run("status", group).stdout
    client.modify_replication_group(ReplicationGroupId=group, ApplyImmediately=True)
    eventually(lambda: installation.status(group)["node_type"] == other)
    assert "→" not in installation.run("status", group).stdout


def test_a_group_and_a_cluster_of_one_name_are_told_apart(installation: Installation, group: str) -> None:
    client = installation.client()
    client.create_cache_cluster(CacheClusterId=group, Engine="memcached", NumCacheNodes=1, CacheNodeType="cache.t3.micro")
    client.get_waiter("cache_cluster_available").wait(CacheClusterId=group)
    listed = installation.run("status").stdout
    assert "group/shown" in listed
    assert "cluster/shown" in listed
    for command in (
        ("status", group),
        ("explain", group),
        ("failover", group),
        ("rotate-credentials", group),
        ("chaos", "kill-node", group, "--yes"),
    ):
        told = installation.run(*command, check=False)
        assert (told.returncode, told.stderr) == (
            1,
            "cachekeep: shown is the name of a replication group and of a cache cluster: say group/shown or cluster/shown.\n",
        )
    assert installation.status("group/shown")["engine"] == "valkey"
    assert installation.status("cluster/shown")["engine"] == "memcached"
    assert installation.status("shown-001")["name"] == installation.status("cluster/shown-001")["name"] == "shown"
    assert "discovery" in installation.run("explain", "cluster/shown").stdout
    harmless = installation.run("chaos", "heal", "group/shown").stdout
    assert harmless == "Nothing of a chaos is left at group/shown.\n"
    unknown = installation.run("status", "group/shown-001", check=False)
    assert "There is no cache 'group/shown-001'." in unknown.stderr
    client.delete_cache_cluster(CacheClusterId=group)
    client.get_waiter("cache_cluster_deleted").wait(CacheClusterId=group)
    assert installation.status(group)["kind"] == "group"


def test_explain_thinks_and_does_nothing(installation: Installation, group: str) -> None:
    before = installation.pids()
    found = json.loads(installation.run("explain", group, "--json").stdout)
    assert (found["step"], found["because"]) == ("wait", "shown is as it should be")
    assert [rule["rule"] for rule in found["rules"][:2]] == ["members.outrun", "moments.recount"]
    assert set(found["view"]["nodes"]) == {"shown-001", "shown-002"}
    short, long = (installation.run("explain", group, *flags).stdout for flags in ((), ("--all",)))
    assert short.startswith("shown: wait: shown is as it should be\n")
    assert "promote.lead" not in short
    heard = [len(view["heard"]) for view in found["view"]["nodes"].values()]
    assert short.count("heard={'history'") == sum(n > 0 for n in heard), "the last word of each, not all that are kept"
    assert "asked_at" not in short
    assert f"{len(found['rules'])} rules have nothing to say; --all lists them." in short
    assert all(rule["rule"] in long for rule in found["rules"])
    assert installation.pids() == before


def test_engines_lists_builds_and_what_they_serve(installation: Installation) -> None:
    found = json.loads(installation.run("engines", "--json").stdout)
    assert {"valkey"} <= {b["engine"] for b in found["builds"]}
    assert any(b["serves"] for b in found["builds"])
    shown = installation.run("engines").stdout
    assert all(b["version"] in shown for b in found["builds"])
    told = " ".join(shown.split())
    ready = installation.narration()
    for b in found["builds"]:
        named = f"{b['engine']} {b['version']}"
        assert (f"{named}: " in told) == bool(b["holes"])
        assert all(hole["id"] in told for hole in b["holes"])
        assert (f"unsafe:   {named} has " in ready) == b["unsafe"]


def test_the_default_has_no_grave_hole_where_a_safe_build_is_there(installation: Installation) -> None:
    builds = json.loads(installation.run("engines", "--json").stdout)["builds"]
    [default] = installation.client().describe_cache_engine_versions(Engine="valkey", DefaultOnly=True)["CacheEngineVersions"]
    safe = any(b["serves"] and not b["unsafe"] for b in builds if b["engine"] == "valkey")
    assert ("unsafe" in default["CacheEngineVersionDescription"]) != safe


def test_status_names_the_holes_of_what_runs(installation: Installation, group: str) -> None:
    client = installation.client()
    runs = client.describe_cache_clusters(CacheClusterId=f"{group}-001")["CacheClusters"][0]["EngineVersion"]
    [build] = [
        v
        for v in client.describe_cache_engine_versions(Engine="valkey")["CacheEngineVersions"]
        if runs.startswith(v["EngineVersion"])
    ]
    warning = installation.status(group)["warning"]
    assert ("CVE" in warning) == ("CVE" in build["CacheEngineVersionDescription"])
    assert warning in " ".join(installation.run("status").stdout.split())


@pytest.mark.parametrize("before", [True, False])
def test_the_data_directory_may_be_named_before_or_after_install(another: Callable[..., Installation], before: bool) -> None:
    one = another()
    named = ("--data-dir", str(one.data_dir / "elsewhere"))
    command = ("engines", *named, "install") if before else ("engines", "install", *named)
    told = subprocess.run([COMMAND, *command, "nonsense@1"], capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "nonsense" in told.stderr


def test_the_desk_needs_the_root_key(installation: Installation, another: Callable[..., Installation]) -> None:
    stranger = another()
    stranger.run("env")
    (stranger.data_dir / "endpoint.json").write_bytes((installation.data_dir / "endpoint.json").read_bytes())
    answer = stranger.run("status", check=False)
    assert answer.returncode == 1
    assert "security token" in answer.stderr
    (stranger.data_dir / "endpoint.json").unlink()


# -- one at a time, and what is in the way


def test_a_second_control_plane_is_refused_and_the_first_goes_on(installation: Installation) -> None:
    assert installation.process is not None
    said = refused(installation)
    assert f"in use by process {installation.process.pid}" in said
    assert installation.healthy()
    assert "There" in installation.run("status").stdout or installation.status()


def test_a_port_in_use_is_said(another: Callable[..., Installation]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        one = another()
        assert f"port {port} of 127.0.0.1 is in use" in refused(one, "--port", str(port))
    assert not one.pids()


@pytest.mark.parametrize("harm", ["garbage", "newer"])
def test_a_database_that_cannot_be_used_is_left_as_it_is(another: Callable[..., Installation], harm: str) -> None:
    one = another()
    one.data_dir.mkdir()
    path = one.data_dir / "cachekeep.db"
    if harm == "garbage":
        path.write_bytes(b"no database at all " * 1000)
    else:
        with sqlite3.connect(path) as database:
            database.execute("create table cachekeep_schema (version_num text)")
            database.execute("insert into cachekeep_schema values ('9999')")
        database.close()
    held = path.read_bytes()
    said = refused(one)
    assert "cachekeep.db" in said
    assert ("newer" in said) == (harm == "newer")
    if harm == "garbage":
        assert path.read_bytes() == held


def test_a_data_directory_that_cannot_be_written(another: Callable[..., Installation]) -> None:
    one = another()
    one.data_dir.parent.mkdir(exist_ok=True)
    one.data_dir.write_text("a file")
    assert "data directory" in refused(one)
    one.data_dir.unlink()


def test_a_data_directory_that_others_may_write_is_refused(another: Callable[..., Installation]) -> None:
    one = another()
    one.data_dir.mkdir(parents=True)
    one.data_dir.chmod(0o777)
    assert "everybody may write in it" in refused(one)
    assert "everybody may write in it" in one.run("env", check=False).stderr
    assert not list(one.data_dir.iterdir())
    one.data_dir.chmod(0o700)
    above = one.data_dir.parent
    mode = above.stat().st_mode
    above.chmod(0o777)
    try:
        assert f"of {above}, everybody may write in it" in refused(one)
        above.chmod(0o1777)  # as /tmp is
        one.up()
    finally:
        above.chmod(mode)


HOSTILE = "it said \x1b]0;owned\x07\x1b[2J\r\n12:00:00 all is well \u202e\x9b1A"


@pytest.mark.parametrize("form", ["plain", "json"])
def test_a_log_line_is_one_line_that_no_terminal_obeys(form: Literal["plain", "json"], capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        logs.set_up("info", form)
        try:
            raise RuntimeError(HOSTILE)
        except RuntimeError as error:
            logging.getLogger("cachekeep").exception("failed: %s, %s", OrderFailed(HOSTILE), error)
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    said = capsys.readouterr().err
    if form == "json":
        shown = json.loads(said)
        assert shown["message"].isprintable()
        said = shown["trace"]
    assert len(said.split("\n")) > 3
    assert all(line.isprintable() for line in said.split("\n"))


def test_what_a_control_plane_answers_is_shown_without_commands_to_the_terminal(tmp_path: Path) -> None:
    class Answering(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.dumps({"caches": [{"because": HOSTILE}], HOSTILE: 1}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    keys.load_or_make(tmp_path)
    with http.server.HTTPServer(("127.0.0.1", 0), Answering) as server:
        endpoint = ServedAt(f"http://127.0.0.1:{server.server_port}", "us-east-1")
        (tmp_path / ENDPOINT_FILE).write_bytes(msgspec.json.encode(endpoint))
        threading.Thread(target=server.handle_request).start()
        found = call(Settings(data_dir=tmp_path), "status")
    assert found["caches"][0]["because"].isprintable()
    assert r"\x1b]0;owned" in found["caches"][0]["because"]
    assert all(name.isprintable() for name in found)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_open_is_for_this_machine_alone(another: Callable[..., Installation], host: str) -> None:
    assert "with --auth open everybody who reaches it is root" in refused(another(), "--auth", "open", "--host", host)


# -- down


def test_down_ends_the_control_plane_and_leaves_caches(another: Callable[..., Installation]) -> None:
    one = another().up()
    created(one.client(), "left", NumCacheClusters=1)
    running = one.pids()
    assert one.process is not None
    said = one.run("down").stdout
    assert f"process {one.process.pid}" in said
    assert one.process.wait() == 0
    assert one.pids() == running
    assert "1 process goes on serving" in one.narration()
    assert "No control plane runs" in one.run("down").stdout
    assert one.run("down", "--engines", input="n\n", check=False).returncode == 1
    assert one.pids() == running
    assert "1 cache process ended" in one.run("down", "--engines", "--yes").stdout
    assert not one.processes()
    one.up()
    eventually(lambda: one.status("left")["status"] == "available")


def test_an_interrupt_answers_held_requests_and_ends(another: Callable[..., Installation]) -> None:
    one = another().up()
    assert one.process is not None
    os.kill(one.process.pid, signal.SIGINT)
    assert one.process.wait(timeout=60) == 0
    assert "Traceback" not in one.narration()


def test_log_lines_for_machines_hold_no_secret(another: Callable[..., Installation]) -> None:
    one = another("--log-format", "json").up()
    client: Any = one.client()
    created(client, "told", NumCacheClusters=1)
    one.run("down")
    lines = [json.loads(line) for line in one.narration().splitlines()]
    assert lines[0]["message"] == "ready"
    assert lines[-1]["processes_that_go_on"] == 1
    assert any("told is available" in line["message"] for line in lines)
    secret = json.loads((one.data_dir / "credentials.json").read_text())["secret_key"]
    assert secret not in one.narration()


def test_what_is_said_to_be_typed_finds_the_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``make run`` starts one that is not on PATH."""
    program, other = tmp_path / "a b" / "cachekeep", tmp_path / "other" / "cachekeep"
    for path in (program, other):
        path.parent.mkdir()
        path.write_text("#!/bin/sh\n")
        path.chmod(0o700)
    monkeypatch.setattr("sys.argv", [str(program), "up"])
    for path, said in ((program.parent, "cachekeep"), (other.parent, f"'{program}'"), (tmp_path, f"'{program}'")):
        monkeypatch.setenv("PATH", str(path))
        assert own_name() == said
