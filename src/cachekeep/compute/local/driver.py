"""The local driver: processes of this machine, detached, each known by a record on disk and held by a pidfd.

The rule on which everything rests: a process becomes a server only after its record is on disk (``spawn``). So after any crash the
records name every server there is, and none is started twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import os
import shutil
import signal
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path

from cachekeep.clock import Clock, boot_id
from cachekeep.compute.contract import File, Key, ProcessSeen, ProcessSpec
from cachekeep.compute.local import proc, sockets
from cachekeep.compute.local.alive import Alive
from cachekeep.compute.local.clients import Clients
from cachekeep.compute.local.known_limits import KnownLimits
from cachekeep.compute.local.ledger import HANGS_SECONDS, KEPT_DIR, Ledger, Record, lock_directory, place
from cachekeep.compute.local.limits import Limiter
from cachekeep.compute.local.output import Outputs
from cachekeep.compute.local.post_mortem import PostMortems
from cachekeep.compute.local.probe import accepts, why_not_free
from cachekeep.compute.local.spawn import Gated, spawn
from cachekeep.compute.local.words import Words
from cachekeep.errors import OrderFailed, Unusable
from cachekeep.model import Digests, Heard, Limits, Process
from cachekeep.model.endpoint import joined

Programs = Callable[[str], Sequence[str]]
"""The words that a program is run by on this machine. Raises ``EngineMissing``."""
_log = logging.getLogger(__name__)
_KILL_SECONDS = 10.0
"""How long a killed process may take to vanish: one that frees much memory takes a while, one stuck in the kernel never does."""
_STUCK_SECONDS = 0.3
"""A killed process that is still there after so long is looked at more closely."""


class LocalDriver:
    """``compute.contract.Driver`` on this machine. Call ``open`` before anything else.

    ``data_dir`` gets a directory ``nodes``. One driver at a time uses it; it is locked while open. What processes may start from is
    kept in ``kept`` beside it. ``programs`` says how a program that is named in a spec is run here.
    """

    def __init__(
        self, data_dir: Path, clock: Clock, *, programs: Programs = lambda name: (name,), start_deadline_seconds: float = 10.0
    ) -> None:
        self._clock, self._programs = clock, programs
        self._ledger = Ledger(data_dir.absolute() / "nodes", data_dir.absolute() / KEPT_DIR)
        self._words, self._outputs = Words(self._ledger), Outputs(self._ledger)
        self._clients = Clients()
        self._limiter = Limiter()
        self._limits = KnownLimits(self._limiter, clock)
        self._post_mortems = PostMortems(self._ledger, self._outputs, self._limiter, clock)
        self._start_deadline_seconds = start_deadline_seconds
        self._held, self._callbacks = dict[Key, Alive](), list[Callable[[Key], None]]()
        self._locks: weakref.WeakValueDictionary[Key | tuple[str, int], asyncio.Lock] = weakref.WeakValueDictionary()
        self._stops_wanted: dict[Key, list[float]] = {}
        """The decisions that stops under way follow from."""
        self._waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._lock_fd: int | None = None

    # Opening and closing

    async def open(self) -> None:
        """Lock the directory and adopt every process on record that is still there.

        Raises ``Unusable`` if another driver has the directory, or if it cannot be used.
        """
        proc.adopt_orphans()
        try:
            await asyncio.to_thread(self._ledger.root.mkdir, mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = await lock_directory(self._ledger.root, self._clock)
            (self._ledger.root / ".lock").touch()  # a disk that takes no writes is better known now than at the first start
            await asyncio.to_thread(self._ledger.load)
            await asyncio.to_thread(self._words.open)
        except OSError as error:
            raise Unusable(f"{self._ledger.root} cannot be used: {error.strerror}.") from error
        for key in self._ledger.known():
            self._adopt(key)

    def _adopt(self, key: Key) -> None:
        record = self._ledger.get(key)
        if record is None or not record.pid or record.boot_id != boot_id():
            return
        pidfd = proc.open_pidfd(record.pid, record.started_ticks)
        if pidfd is not None:
            self._outputs.adopt(key, record.pid)
            self._hold(Alive(key, record.pid, record.started_ticks, pidfd, adopted=True))

    async def aclose(self) -> None:
        """Let go of everything; processes go on."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._clients.aclose()
        self._limits.close()
        for held in self._held.values():
            if not held.ended:
                asyncio.get_running_loop().remove_reader(held.pidfd)
                os.close(held.pidfd)
        self._held.clear()
        for part in (self._words, self._outputs, self._ledger):
            await asyncio.to_thread(part.close)
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    # Looking

    async def look(self, keys: Iterable[Key]) -> dict[Key, ProcessSeen]:
        """What is known of these processes: from memory, and from /proc of each that lives."""
        return {key: self._look(key) for key in keys}

    def _look(self, key: Key) -> ProcessSeen:
        record = self._ledger.get(key)
        if (unsure := self._ledger.unsure(key)) is not None:
            return ProcessSeen(process=None, problem=unsure)
        if record is None:
            return ProcessSeen(process="absent")
        held = self._held.get(key)
        seen = proc.stat(held.pid) if held else None
        alive = held is not None and held.is_in(seen)
        state: Process = "absent" if not record.incarnation else proc.process_of(seen.state) if alive and seen else "exited"
        return ProcessSeen(
            process="stuck" if alive and held and held.stuck else state,
            incarnation=record.incarnation,
            decision=record.decision,
            pid=held.pid if held and alive else None,
            cpu_seconds=seen.cpu_ticks / proc.TICKS_PER_SECOND if alive and seen else None,
            program=record.program,
            digests=record.digests,
            last_order=record.last_order,
            lead_order=record.lead_order,
            heard=self._words.of(key),
            ended_at=None if alive else record.ended_at,
            limits=self._limits.seen(key, held.pid, record.cgroups) if held and alive and not held.stuck else None,
            problem=(held.stuck if held else None) or record.problem,
        )

    def capacity(self) -> Limits:
        """See ``Driver.capacity``: what this machine has."""
        return self._limiter.capacity()

    def known(self) -> list[Key]:
        """See ``Driver.known``: every process on record."""
        return self._ledger.known()

    def log_path(self, key: Key) -> Path:
        """Where the process writes its log."""
        return self._ledger.directory(key) / "log"

    def on_death(self, callback: Callable[[Key], None]) -> None:
        """Call back in the event loop, once, when a process ends that was accepting connections or had been adopted.
        ``start`` tells of one that ends before it accepts."""
        self._callbacks.append(callback)

    # Orders

    async def start(self, spec: ProcessSpec) -> None:
        """See ``Driver.start``. Goes on to its end even if the caller is cancelled, so that no process is half started."""
        await self._carry(self._start(spec))

    async def stop(self, key: Key, *, grace_seconds: float, decision: int | None = None) -> None:
        """See ``Driver.stop``. Ends a start that is under way, and the grace of a stop that is.
        Raises ``OrderFailed`` if the process cannot be killed.

        A killed process that hangs in the kernel counts as gone when its sockets are closed: it can do no more harm.
        """
        self._check_meant(key, decision)
        wanted, until = self._stops_wanted.setdefault(key, []), math.inf if decision is None else decision
        wanted.append(until)
        if grace_seconds <= 0 and (held := self._held.get(key)) is not None:
            held.hurried.set()
        try:
            await self._carry(self._stop(key, grace_seconds, decision))
        finally:
            wanted.remove(until)
            if not wanted:
                self._stops_wanted.pop(key, None)

    def _check_meant(self, key: Key, decision: int | None) -> None:
        """Raises ``OrderFailed`` if what is there was started by a later decision."""
        if decision is not None and (started_by := (self._ledger.get(key) or Record()).decision) > decision:
            raise OrderFailed(f"{key[1]} was started by decision {started_by}; its end was decided before that, by {decision}.")

    def _unwanted(self, spec: ProcessSpec) -> bool:
        """Its end is under way while it starts."""
        return any(until >= spec.decision for until in self._stops_wanted.get(spec.key, ()))

    async def erase(self, key: Key, *, decision: int | None = None) -> None:
        """See ``Driver.erase``."""
        await self.stop(key, grace_seconds=0, decision=decision)
        await self._carry(self._erase(key, decision))

    async def rewrite(self, key: Key, files: Mapping[str, File], *, digests: Digests) -> None:
        """See ``Driver.rewrite``. Raises ``OrderFailed`` if the process was never started or the disk is full."""
        await self._carry(self._rewrite(key, files, digests))

    async def limit(self, key: Key, limits: Limits) -> None:
        """See ``Driver.limit``."""
        await self._carry(self._limit(key, limits))

    async def admit(self, key: Key, order: int, *, leading: bool = False) -> bool:
        """See ``Memory.admit``. Raises ``OrderFailed`` if the order cannot be remembered: then it must not be carried out."""
        try:
            async with asyncio.timeout(HANGS_SECONDS):
                return await asyncio.to_thread(self._ledger.admit, key, order, leading=leading)
        except TimeoutError as error:
            raise OrderFailed(f"{key[1]}: order {order} cannot be remembered: the disk does not answer.") from error

    def remember(self, key: Key, heard: Heard) -> None:
        """See ``Memory.remember``."""
        self._words.add(key, heard)

    async def _carry(self, work: Coroutine[None, None, None]) -> None:
        """Have the work done whether or not the caller waits for it."""
        await asyncio.shield(self._begin(work))

    def _begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: whoever ordered it may have stopped waiting

    def _lock(self, key: Key | tuple[str, int]) -> asyncio.Lock:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    # Starting

    async def _start(self, spec: ProcessSpec) -> None:
        key, name = spec.key, spec.key[1]
        async with self._lock(key):
            if (unsure := self._ledger.unsure(key)) is not None:
                raise OrderFailed(unsure)
            record = self._ledger.get(key) or Record()
            held = self._held.get(key)
            if held is not None and not held.is_in(proc.stat(held.pid)):
                await held.gone.wait()  # dead, and the event loop has not come round to it yet, or its children are dying
                held = None
            if held is not None and held.stuck:
                raise OrderFailed(f"{name}: {held.stuck}.")
            if held is not None:
                if record.incarnation != spec.incarnation:
                    raise OrderFailed(
                        f"{name}: incarnation {record.incarnation} is alive (pid {held.pid}); "
                        f"it must be confirmed stopped before incarnation {spec.incarnation} starts."
                    )
                if held.accepting:
                    return
                # Adopted, or left silent by an earlier call: not ours to kill. If it ends under our eyes, start anew.
                await self._await_accepting(spec, held)
                if held.accepting:
                    return
                if not held.gone.is_set():
                    raise OrderFailed(f"{name}: pid {held.pid} is there but does not accept connections at {_endpoint(spec)}.")
            if spec.incarnation < record.incarnation:
                raise OrderFailed(f"{name}: incarnation {spec.incarnation} is older than the last, {record.incarnation}.")
            # Two that want the same endpoint go one after the other: the second must not take the first's answer for its own.
            async with self._lock((spec.address, spec.port)):
                await self._start_anew(spec)

    async def _start_anew(self, spec: ProcessSpec) -> None:
        key, name = spec.key, spec.key[1]
        try:
            gated = await asyncio.to_thread(self._spawn, spec)
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            raise OrderFailed(f"{name}: not started: {error.strerror or error}{where}.") from error
        record = self._ledger.get(key)
        assert record is not None
        pidfd = proc.open_pidfd(record.pid, record.started_ticks)
        assert pidfd is not None, "a child of ours is not reaped by anybody else"
        held = Alive(key, record.pid, record.started_ticks, pidfd, adopted=False)
        self._hold(held)
        gated.release()
        await self._await_accepting(spec, held)
        if held.accepting:
            return
        if not (ended_by_itself := held.gone.is_set()):
            await self._end(held, grace_seconds=0)
        if ended_by_itself:
            why = (self._ledger.get(key) or record).problem or "ended"
        elif self._unwanted(spec):
            why = "stopped while it was starting"
        else:
            said = await asyncio.to_thread(self._ledger.last_words, key, self._outputs.said(key))
            why = f"accepted no connections at {_endpoint(spec)} within {self._start_deadline_seconds:g} s: {said or 'no output'}"
            self._remember(key, problem=why)
        raise OrderFailed(f"{name}: {why}")

    def _spawn(self, spec: ProcessSpec) -> Gated:
        """Files, limits, child, record, in a thread. Raises ``OSError`` or ``EngineMissing``, and then there is no child."""
        key = spec.key
        program = self._programs(spec.argv[0])
        if shutil.which(program[0]) is None:
            raise FileNotFoundError(2, "no such program", program[0])
        if (taken := why_not_free(spec.address, spec.port)) is not None:
            raise OSError(0, taken)
        directory = self._ledger.make_directory(key)
        files = self._ledger.write_files(key, spec.files, spec.address)
        argv = tuple(place(word, directory, spec.address) for word in (*program, *spec.argv[1:]))
        confinement = self._limiter.prepare(key, spec.limits)
        gated: Gated | None = None
        try:
            output_fd = self._outputs.begin(key)
            try:
                gated = spawn(argv, directory=directory, env=spec.env, output_fd=output_fd, enter=confinement.doors)
            finally:
                os.close(output_fd)
            seen = proc.stat(gated.pid)
            assert seen is not None
            self._limiter.confine(key, gated.pid, spec.limits)
            before = self._ledger.get(key)
            self._ledger.change(
                key,
                incarnation=spec.incarnation,
                decision=spec.decision,
                last_order=max(before.last_order if before is not None else 0, spec.order),
                lead_order=0,
                ended_at=None,
                pid=gated.pid,
                started_ticks=seen.started_ticks,
                boot_id=boot_id(),
                argv=argv,
                program=spec.argv[0],
                address=spec.address,
                port=spec.port,
                files=files,
                digests=spec.digests,
                cgroups=confinement.groups,
                memory_kills=self._limiter.memory_kills(confinement.groups),
                problem=None,
            )
        except BaseException:
            if gated is not None:
                gated.abandon()
            self._limiter.release(key, confinement.groups)
            raise
        return gated

    async def _await_accepting(self, spec: ProcessSpec, held: Alive) -> None:
        """Wait until it accepts connections, ends, is to be stopped, or the deadline passes; ``held`` tells which."""
        deadline = self._clock.monotonic() + self._start_deadline_seconds
        pause_seconds = 0.001
        self._waiting += 1
        try:
            while not held.gone.is_set() and not self._unwanted(spec):
                left = deadline - self._clock.monotonic()
                if left <= 0:
                    return
                if await accepts(spec.address, spec.port, spec.probe, tls=spec.tls, deadline_seconds=min(left, 0.5)):
                    held.accepting = not held.gone.is_set()
                    return
                await asyncio.sleep(pause_seconds * self._waiting)  # all together ask no more often than one would
                pause_seconds = min(pause_seconds * 1.1, 0.02)
        finally:
            self._waiting -= 1

    # Holding and ending

    def _hold(self, held: Alive) -> None:
        self._held[held.key] = held
        asyncio.get_running_loop().add_reader(held.pidfd, self._ended, held)

    def _ended(self, held: Alive) -> None:
        """It has ended: learn how, kill what it left behind, reap, remember, tell."""
        asyncio.get_running_loop().remove_reader(held.pidfd)
        how = proc.ending(held.pidfd)
        proc.kill_group(held.pidfd, held.pid, held.started_ticks)
        os.close(held.pidfd)
        held.ended = True
        ended_at = self._clock.moment()
        self._limits.forget(held.key)
        problem = None if held.unwanted else str(how) if held.expected else self._post_mortems.of(held, how)
        self._remember(held.key, pid=0, ended_at=ended_at, problem=problem)
        if proc.reap_group(held.pid, block=False):
            self._told(held, how)
        else:
            reaping = asyncio.get_running_loop().run_in_executor(None, functools.partial(proc.reap_group, held.pid, block=True))
            reaping.add_done_callback(lambda _: self._told(held, how))

    def _told(self, held: Alive, how: proc.Ending) -> None:
        if self._held.get(held.key) is held:
            del self._held[held.key]
        held.gone.set()
        held.hurried.set()
        if not held.expected:
            return
        if not held.unwanted:
            self._begin(self._post_mortems.later(held, how))
        if (record := self._ledger.get(held.key)) is not None and record.port:
            self._clients.let_go(record.address, record.port)
        for callback in self._callbacks:
            try:
                callback(held.key)
            except Exception:
                _log.exception("A listener for the end of %s failed.", held.key[1])

    def _remember(self, key: Key, **changes: object) -> None:
        """Note how things went. Best effort: the truth is in /proc, and no disk, full or hanging, keeps us from telling."""
        if self._ledger.get(key) is not None:
            self._ledger.note(key, **changes)

    async def _stop(self, key: Key, grace_seconds: float, decision: int | None) -> None:
        async with self._lock(key):
            self._check_meant(key, decision)
            if (unsure := self._ledger.unsure(key)) is not None:
                raise OrderFailed(unsure)
            held = self._held.get(key)
            if held is not None:
                await self._end(held, grace_seconds=grace_seconds)

    async def _end(self, held: Alive, *, grace_seconds: float) -> None:
        """Have it do nothing any more: gone, or, where the kernel does not let go of it, killed and without sockets."""
        held.unwanted = True
        if held.stuck is not None:
            return
        if grace_seconds > 0 and not held.ended:
            proc.send_signal(held.pidfd, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(held.hurried.wait(), grace_seconds)
        if not held.gone.is_set():
            if not held.ended:
                proc.kill_group(held.pidfd, held.pid, held.started_ticks)
            if await self._vanished(held, _STUCK_SECONDS):
                return
            why_not = await self._seal(held)
            if held.stuck is None and not await self._vanished(held, _KILL_SECONDS):
                raise OrderFailed(f"{held.key[1]}: pid {held.pid} is still there {_KILL_SECONDS:g} s after SIGKILL: {why_not}.")

    async def _vanished(self, held: Alive, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(held.gone.wait(), seconds)
        return held.gone.is_set()

    async def _seal(self, held: Alive) -> str | None:
        """Take a killed process that hangs in the kernel for stopped, once its sockets are closed. Why not, if it cannot be."""
        if held.ended:
            return "what it forked is on its way out"
        if not proc.is_doomed(held.pid):
            return "the kernel has not taken the signal to it"
        if (why_not := await asyncio.to_thread(sockets.destroy, held.pid)) is not None:
            return why_not
        if not held.gone.is_set():
            held.stuck = f"killed, but pid {held.pid} hangs in the kernel: look after its disk"
            _log.warning("%s: %s.", held.key[1], held.stuck)
        return None

    async def _erase(self, key: Key, decision: int | None) -> None:
        async with self._lock(key):
            self._check_meant(key, decision)
            if (held := self._held.get(key)) and not (held.stuck and await self._vanished(held, _KILL_SECONDS)):
                raise OrderFailed(f"{key[1]}: {held.stuck or 'was started again while it was being erased'}.")
            record = self._ledger.get(key) or Record()
            try:
                self._outputs.forget(key)
                await asyncio.to_thread(self._limiter.release, key, record.cgroups)
                await asyncio.to_thread(self._ledger.forget, key)
                self._words.forget(key)
            except OSError as error:
                raise OrderFailed(f"{key[1]}: not erased: {error.strerror} ({error.filename}).") from error

    async def _rewrite(self, key: Key, files: Mapping[str, File], digests: Digests) -> None:
        async with self._lock(key):
            if (record := self._ledger.get(key)) is None:
                raise OrderFailed(f"{key[1]}: was never started, so there is nothing to rewrite.")
            try:
                names = await asyncio.to_thread(self._ledger.write_files, key, files, record.address)
                await asyncio.to_thread(self._ledger.change, key, files=names, digests={**record.digests, **digests})
            except OSError as error:
                raise OrderFailed(f"{key[1]}: its files were not rewritten: {error.strerror} ({error.filename}).") from error

    async def _limit(self, key: Key, limits: Limits) -> None:
        async with self._lock(key):
            held, record = self._held.get(key), self._ledger.get(key)
            if held is None or record is None or not held.is_in(proc.stat(held.pid)):
                raise OrderFailed(f"{key[1]}: does not run, so there is nothing to limit.")
            self._remember(key, cgroups=await self._limits.change(key, held.pid, record.cgroups, limits))


def _endpoint(spec: ProcessSpec) -> str:
    return joined(spec.address, spec.port)
