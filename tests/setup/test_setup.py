"""Set-up, with apt played by small programs: what it asks for, what it leaves behind, and what it says when it cannot."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from cachekeep.toolchain.aptsources import Source, entry_options, source_text, sources_of, stanzas

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def setup_script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("cachekeep_setup_script", ROOT / "tools" / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


# --- the machine's own mirror

TARGETS = """\
MetaKey: main/binary-amd64/Packages
Created-By: Packages
Codename: bookworm
Release: bookworm
Component: main
Repo-URI: http://mirror.example/debian/
Sourcesentry: {entry}

MetaKey: contrib/binary-amd64/Packages
Created-By: Packages
Release: bookworm
Component: contrib
Repo-URI: http://mirror.example/debian/
Sourcesentry: {entry}

MetaKey: main/i18n/Translation-en
Created-By: Translations
Release: bookworm
Component: main
Repo-URI: http://mirror.example/debian/
Sourcesentry: {entry}

MetaKey: main/binary-amd64/Packages
Created-By: Packages
Release: bookworm-security
Component: main
Repo-URI: http://mirror.example/debian-security/
Sourcesentry: {entry}
"""

DEB822 = """\
# a comment
Types: deb
URIs: http://other.example/x
Suites: x
Components: main

Types: deb deb-src
# another
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Architectures: amd64
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
Trusted: yes
"""


def test_the_mirror_and_its_trust_come_from_the_entry_itself() -> None:
    (source,) = sources_of(TARGETS.format(entry="/etc/apt/x.sources:2"), "bookworm", lambda _: DEB822)
    assert source.uri == "http://mirror.example/debian/"
    assert source.components == ("main", "contrib")
    assert dict(source.options) == {
        "Signed-By": "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc",
        "Trusted": "yes",
    }
    (again,) = stanzas(source_text(source, "bookworm-backports"))
    assert again["suites"] == "bookworm-backports"
    assert again["signed-by"].endswith("abc")


def test_an_entry_of_the_one_line_form() -> None:
    text = "# first\ndeb [arch=amd64 signed-by=/k/a.gpg,/k/b.gpg] http://mirror.example/debian bookworm main\n"
    assert entry_options("/etc/apt/sources.list", text, 2) == (("Signed-By", "/k/a.gpg /k/b.gpg"),)
    assert entry_options("/etc/apt/sources.list", text, 1) == ()
    assert entry_options("/etc/apt/sources.list", text, 99) == ()


def test_a_sources_file_that_cannot_be_read_costs_its_options_only() -> None:
    def refuse(name: str) -> str:
        raise PermissionError(name)

    assert sources_of(TARGETS.format(entry="/gone.list:1"), "bookworm", refuse) == [
        Source("http://mirror.example/debian/", ("main", "contrib"), ())
    ]
    assert sources_of("", "bookworm", refuse) == []
    assert sources_of(TARGETS.format(entry=""), "trixie", refuse) == []


# --- apt


class World:
    """A directory of programs that play apt, dpkg and friends: they log what they are asked and obey small files."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.log = home / "log"
        self.programs = home / "programs"
        self.programs.mkdir()
        self.policy = home / "policy-rc.d"
        self.play("apt-cache", f'[ -e {home}/has-"$2" ] && echo "  Candidate: 1.0" || echo "  Candidate: (none)"')
        self.play("dpkg-query", f'[ -e {home}/installed-"$4" ] && printf installed; true')
        self.play("systemctl")
        self.play("update-rc.d")

    def play(self, name: str, body: str = "") -> None:
        program = self.programs / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.log}\n{body}\n')
        program.chmod(0o755)

    def has(self, *packages: str) -> None:
        for package in packages:
            (self.home / f"has-{package}").touch()

    def asked(self, word: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if word in line] if self.log.exists() else []


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    monkeypatch.setenv("PATH", f"{world.programs}:{os.environ['PATH']}")
    return world


def apt_of(setup_script: ModuleType, world: World) -> object:
    return setup_script.Apt([], sources=world.home / "backports.sources", policy=world.policy)


def install_and_note_the_policy(world: World, then: str = "") -> None:
    world.play(
        "apt-get",
        f'case "$*" in *install*) sh {world.policy}; echo "answer $?" >> {world.log};\n'
        f'for p in "$@"; do touch {world.home}/installed-$p 2>/dev/null; done; {then}\n;; esac',
    )


@pytest.mark.parametrize("before", [None, "#!/bin/sh\nexit 0\n"])
def test_services_are_held_while_packages_install_and_the_policy_comes_back(
    setup_script: ModuleType, world: World, before: str | None
) -> None:
    if before is not None:
        world.policy.write_text(before)
    world.has("redis-server")
    install_and_note_the_policy(world)
    setup_script.install_packages(apt_of(setup_script, world), [n for n in setup_script.NEEDS if n.package == "redis-server"])
    assert world.asked("answer") == ["answer 101"]
    assert (world.policy.read_text() if world.policy.exists() else None) == before
    assert [line for line in world.asked("redis-server disable") + world.asked("disable redis-server") if line]


@pytest.mark.parametrize("before", [None, "#!/bin/sh\nexit 0\n"])
@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_the_policy_comes_back_whatever_happens(
    setup_script: ModuleType, world: World, before: str | None, failure: type[BaseException]
) -> None:
    if before is not None:
        world.policy.write_text(before)
    apt = setup_script.Apt([], policy=world.policy)
    with pytest.raises(failure), apt.services_held():
        assert "exit 101" in world.policy.read_text()
        raise failure
    assert (world.policy.read_text() if world.policy.exists() else None) == before


@pytest.mark.parametrize("before", [None, "#!/bin/sh\nexit 0\n"])
def test_what_a_killed_set_up_left_is_put_right_by_the_next(setup_script: ModuleType, world: World, before: str | None) -> None:
    if before is not None:
        world.policy.write_text(before)
    killed = setup_script.Apt([], policy=world.policy).services_held()
    killed.__enter__()  # and never left
    with setup_script.Apt([], policy=world.policy).services_held():
        assert "exit 101" in world.policy.read_text()
    assert (world.policy.read_text() if world.policy.exists() else None) == before
    assert not list(world.home.glob("*.before-cachekeep"))


def test_a_service_that_was_installed_before_us_is_not_touched(setup_script: ModuleType, world: World) -> None:
    world.has("redis-server")
    (world.home / "installed-redis-server").touch()
    install_and_note_the_policy(world)
    setup_script.install_packages(apt_of(setup_script, world), [n for n in setup_script.NEEDS if n.package == "redis-server"])
    assert world.asked("disable") == []


def test_one_package_that_cannot_be_had_does_not_cost_the_others(
    setup_script: ModuleType, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.has("redis-server", "memcached")
    install_and_note_the_policy(world, 'case "$*" in *redis-server*) echo "E: held broken packages"; exit 100;; esac')
    needs = [need for need in setup_script.NEEDS if need.package in {"redis-server", "memcached", "haproxy"}]
    setup_script.install_packages(apt_of(setup_script, world), needs)
    assert [line.split("install ")[1] for line in world.asked("apt-get -q -y")] == [
        "memcached redis-server",
        "memcached",
        "redis-server",
    ]
    assert "apt could not install redis-server: E: held broken packages" in capsys.readouterr().out


def test_apt_without_a_network_is_a_line_and_not_the_end(
    setup_script: ModuleType, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.play("apt-get", 'echo "Err:1 http://mirror.example bookworm"; echo "E: Failed to fetch"; exit 100')
    setup_script.install_packages(apt_of(setup_script, world), setup_script.NEEDS)
    said = capsys.readouterr().out
    assert "apt-get update failed" in said
    assert "E: Failed to fetch" in said
    assert not world.policy.exists()


def backports_world(setup_script: ModuleType, world: World, found: bool) -> None:
    entry = world.home / "machine.sources"
    entry.write_text(DEB822)
    (world.home / "targets").write_text(TARGETS.format(entry=f"{entry}:2"))
    world.play(
        "apt-get",
        f'case "$*" in indextargets) cat {world.home}/targets;;'
        f" *sourcelist=*update) cat {world.home}/backports.sources >> {world.home}/written;"
        f" {'touch ' + str(world.home) + '/has-valkey-server' if found else 'exit 100'};; esac",
    )


def test_backports_are_added_from_the_machines_own_mirror(setup_script: ModuleType, world: World) -> None:
    backports_world(setup_script, world, found=True)
    setup_script.Apt([], sources=world.home / "backports.sources").add_backports("valkey-server", "bookworm")
    text = (world.home / "backports.sources").read_text()
    assert "URIs: http://mirror.example/debian/\nSuites: bookworm-backports\nComponents: main contrib\n" in text
    assert "Trusted: yes" in text


def test_a_release_without_backports_is_left_as_it_was(setup_script: ModuleType, world: World) -> None:
    backports_world(setup_script, world, found=False)
    setup_script.Apt([], sources=world.home / "backports.sources").add_backports("valkey-server", "bookworm")
    assert (world.home / "written").exists()
    assert not (world.home / "backports.sources").exists()


def test_backports_are_not_asked_where_the_release_has_it(setup_script: ModuleType, world: World) -> None:
    world.has("valkey-server")
    world.play("apt-get")
    setup_script.Apt([], sources=world.home / "backports.sources").add_backports("valkey-server", "bookworm")
    assert world.asked("apt-get") == []


# --- without rights, and the second time


def test_without_root_it_says_what_is_missing_and_how_to_get_it(
    setup_script: ModuleType, world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.play("apt-get")
    monkeypatch.setattr(setup_script, "root_prefix", lambda: None)
    monkeypatch.setattr(setup_script, "NEEDS", (setup_script.Need("no-such-server", "valkey-server", "Valkey caches"),))
    setup_script.set_up_engines("run", tried_before=False)
    assert "missing: no-such-server, for Valkey caches. To get it: apt install valkey-server" in capsys.readouterr().out
    assert world.asked("apt-get") == []


def test_a_package_that_was_not_to_be_had_is_not_asked_for_on_every_start(
    setup_script: ModuleType, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.play("apt-get")
    monkeypatch.setattr(setup_script, "root_prefix", list)
    monkeypatch.setattr(setup_script, "NEEDS", (setup_script.Need("no-such-server", "no-such", "nothing"),))
    setup_script.set_up_engines("run", tried_before=True)
    assert world.asked("apt-get") == []


def checkout(setup_script: ModuleType, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose uv is a program that makes an environment and logs; nothing is missing on the machine."""
    for name in (
        "pyproject.toml",
        "packages/cachekeep-patterns/pyproject.toml",
        "requirements/run.lock",
        "requirements/dev.lock",
        "requirements/bench.lock",
    ):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(name)
    monkeypatch.setattr(setup_script, "ROOT", home)
    monkeypatch.setattr(setup_script, "NEEDS", ())
    return home


def fake_uv(world: World) -> None:
    world.play("uv", f'[ "$1" = venv ] && mkdir -p .venv/bin && ln -sf {sys.executable} .venv/bin/python; true')


def test_the_second_run_does_nothing_until_the_lock_changes(
    setup_script: ModuleType, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = checkout(setup_script, world.home, monkeypatch)
    fake_uv(world)
    assert setup_script.main(["test"]) == 0
    assert len(world.asked("uv pip install")) == 2
    assert "--require-hashes" in world.asked("uv pip install")[0]
    for purpose in ("test", "run"):  # what tests need holds what running needs
        assert setup_script.main([purpose]) == 0
    assert len(world.asked("uv")) == 3
    (home / "requirements" / "dev.lock").write_text("changed")
    assert setup_script.main(["test"]) == 0
    assert len(world.asked("uv pip install")) == 4


def test_an_interrupted_installation_is_done_again(setup_script: ModuleType, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout(setup_script, world.home, monkeypatch)
    world.play("uv", f"mkdir -p .venv/bin; ln -sf {sys.executable} .venv/bin/python; kill -INT $PPID; exec sleep 10")
    (world.home / "tools").mkdir()
    (world.home / "tools" / "setup.py").write_text((ROOT / "tools" / "setup.py").read_text())
    (world.home / "src").symlink_to(ROOT / "src")
    done = subprocess.run([sys.executable, "tools/setup.py", "run"], cwd=world.home, capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    fake_uv(world)
    world.log.unlink()
    assert setup_script.main(["run"]) == 0
    assert len(world.asked("uv pip install")) == 2


def test_a_failing_index_is_a_line_and_not_a_traceback(
    setup_script: ModuleType, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout(setup_script, world.home, monkeypatch)
    world.play("uv", "exit 2")
    monkeypatch.setattr(setup_script, "usable_python", lambda: None)
    monkeypatch.setattr(setup_script, "root_prefix", lambda: None)
    world.play("apt-get")
    assert setup_script.main(["run"]) == 1
    said = capsys.readouterr().out
    assert "uv did not manage that; trying pip" in said
    assert "To get it: apt install python3" in said
    assert not (world.home / ".venv" / "cachekeep-setup.json").exists()
