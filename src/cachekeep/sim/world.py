"""Simulated machines: processes that die, freeze and come back; engines that replicate; a network that can be cut.

A small fault vocabulary, and just enough of an engine that every way of losing a write in a real one exists here: asynchronous
replication, a replica that believes it is linked before its primary streams to it, full resynchronisation that empties the replica,
restart without data, orders that arrive late or twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from cachekeep.compute.contract import Key, ProcessSpec
from cachekeep.errors import OrderFailed
from cachekeep.model import Digests, Heard, Limits, Moment, Plight, Stream
from cachekeep.plan import Policy
from cachekeep.sim.halts import outside
from cachekeep.sim.timeless import SimHost

T = TypeVar("T")
NOBODY = "nobody"
STREAM_SECONDS = 0.005
HANDSHAKE_SECONDS = 0.05
ACK_SECONDS = 1.0
BREAK_SECONDS = 0.5
FORK = 2
"""Times its data, an engine needs while a fork has a copy."""
Trouble = Literal["slow", "busy", "written", "paused", "crowded"]
"""What clients do to an engine that is alive: a command that takes long, a script, one that has written, CLIENT PAUSE … ALL,
too many of them. With the first three its event loop stands still."""
_EXCUSES: dict[Trouble, Plight] = {"busy": "busy", "written": "busy", "paused": "paused", "crowded": "crowded"}
LAG_SECONDS = 4.0
"""An engine that needs replicas to take writes may miss them so late: lag in whole seconds, looked at once a second."""


@dataclass
class Engine:
    """One process, with the engine inside it."""

    spec: ProcessSpec
    order: int
    pid: int = 0
    alive: bool = True
    frozen: bool = False
    role: str = "replica"
    follows: str = NOBODY
    linked: bool = False
    online: bool = False
    """What its primary knows: the first ACK has arrived, so the stream flows."""
    loading: bool = False
    """It reads in what a full synchronisation has brought: it holds nothing yet, and says so to everybody."""
    haste: float = 1.0
    """Chance, at each turn, that its first ACK reaches the primary before ``acks_at``."""
    acks_at: float = 0.0
    """When that ACK is there at the latest: engines send one each second."""
    history: bool = False
    lineage: Stream = field(default_factory=lambda: Stream("", 0))
    """The history that it holds, and the one before that; its own offset is the number of its writes."""
    writes: list[int] = field(default_factory=list)
    bound: set[str] = field(default_factory=set)
    paused_until: float = 0.0
    digests: Digests = field(default_factory=dict)
    problem: str | None = None
    """Why it ended, unless that was ordered."""
    told: tuple[tuple[str, ...], int] | None = None
    """Of a front: its targets, and the version of its list, since it was last pointed."""
    discovery: int = 0
    link_epoch: int = 0
    min_replicas: int = 0
    limits: Limits = field(default_factory=Limits)
    """What its process is held to."""
    maxmemory: int = 0
    still_at: float = 0.0
    """Since when it acknowledges nothing, if it does not."""
    acknowledged_at: dict[Key, float] = field(default_factory=dict)
    """Of a primary: when each replica last acknowledged what it sent."""
    feeds: dict[Key, tuple[float, float]] = field(default_factory=dict)
    """Of a primary: from when to when it has fed each replica without a break."""
    trouble: Trouble | None = None
    interrupted: bool = False
    """It was told to end its script, and could not."""
    held_back: list[tuple[str, Callable[[Engine], None]]] = field(default_factory=list)
    """Orders that wait for the end of a pause, with whose they are: a control plane that dies takes its own with it."""

    @property
    def works(self) -> bool:
        """Its event loop turns."""
        return self.alive and not self.frozen and self.trouble not in ("slow", "busy", "written")

    @property
    def answers(self) -> bool:
        """It tells what it is asked."""
        return self.works and self.trouble is None and not self.loading

    @property
    def excuse(self) -> Plight | None:
        """What it says instead."""
        if not self.alive or self.frozen:
            return None
        if self.loading and self.trouble != "slow":
            return "loading"
        if self.trouble is None:
            return None
        return "unkillable" if self.trouble == "written" and self.interrupted else _EXCUSES.get(self.trouble)

    @property
    def stream(self) -> Stream | None:
        """What it says that it holds."""
        at = self.lineage
        return Stream(at.history, len(self.writes), at.before, at.shared) if self.history or self.writes else None

    @property
    def holds(self) -> bool:
        """Whether there is anything in it to be lost."""
        return self.alive and bool(self.writes)

    @property
    def acknowledges(self) -> bool:
        """Whether clients that are with it are served, if it leads."""
        return self.works and self.trouble != "paused"

    def heed(self, settings: Mapping[str, str]) -> None:
        """Those that simulated engines know."""
        self.min_replicas = int(settings.get("min-replicas-to-write", self.min_replicas))
        self.maxmemory = int(settings.get("maxmemory", self.maxmemory))

    def lead(self, history: str) -> None:
        """It follows nobody, and what it writes from now on is a history of its own."""
        if self.role != "primary":
            before = (self.lineage.history, len(self.writes)) if self.history else ()
            self.lineage = Stream(history, 0, *before)
        self.role, self.follows, self.history = "primary", NOBODY, True
        self.link_epoch += 1


class World:
    """Everything that is not the control plane."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.processes: dict[Key, Engine] = {}
        self.orders: dict[Key, int] = {}
        self.lead_orders: dict[Key, int] = {}
        self.heard: dict[Key, tuple[Heard, ...]] = {}
        self.ended: dict[Key, Moment] = {}
        """When a process was seen to end."""
        self.kept: dict[str, list[int]] = {}
        """Files that a process may be told to start from, by name: the writes that each holds."""
        self.born = 0
        """Processes that there have been."""
        self.histories = 0
        self.led_at, self.answering_since = dict[Key, float](), dict[Key, float]()
        """When each process was last a primary that works, and since when it tells what it is asked."""
        self.promoted: Callable[[Key], None] = lambda key: None
        """Told of each process that is let lead."""
        self.handed: Callable[[Key], None] = lambda key: None
        """Told of each taker of a hand-over that begins."""
        self.cut: set[Key] = set()
        """Processes whose host nobody reaches, neither keepers nor peers nor clients."""
        self.severed: set[frozenset[Key | str]] = set()
        """Pairs that do not reach each other, while others reach both: two processes, or a keeper and a process."""
        self.has_bus = False
        """Processes talk to each other beside their streams."""
        self.deaf: set[Key] = set()
        """Processes that hear nothing on the bus, while they are heard, and streams go on."""
        self.full: set[Key] = set()
        """Processes whose disk takes nothing any more."""
        self.sync_seconds = 0.0
        """How long a full synchronisation takes. For half of it the replica has what it had; then it is empty, and loads."""
        self.unstartable: set[Key] = set()
        """Of these no process can be started: their address is taken, or their build is gone."""
        self.stuck: set[Key] = set()
        """What the driver is told to do with these processes, and what fronts among them are told or asked, does not end."""
        self.blind: set[str] = set()
        """Keepers that reach no host at all."""
        self.seen: Callable[[], bool] = lambda: True
        """Whether a control plane is there that is not halted."""
        self.attended: Callable[[], bool] = lambda: True
        """Whether all are."""
        self.unattended_at = 0.0
        """When some control plane was last not there, or blind."""
        self.on_answer: Callable[[], None] | None = None
        """What happens when an engine has answered, and before that is read."""
        self.fatal_promotions = 0
        """So many things have a keeper die of letting a node lead."""
        self.die_of_promotion: Callable[[], None] = lambda: None
        """What a fatal promotion does."""
        self.restarts = 0
        """Of keepers."""
        self.witnesses: list[Callable[[Key], None]] = []
        """Drivers that are there to see a process end."""
        self.acknowledged: dict[int, tuple[float, Engine]] = {}
        """When each write was acknowledged, and by which engine."""
        self.in_flight_seconds = Policy().in_flight_seconds
        self.lossable: set[int] = set()
        """Acknowledged writes that nobody could have kept: none that worked held them when their only holder died, a moment after
        it had acknowledged them; or everybody was lost; or the user accepted the loss."""
        self.unfit: Callable[[ProcessSpec], bool] = lambda spec: False
        """Whether a process ends as soon as it is started, for what stands in its files."""
        self.unknown: Callable[[str], bool] = lambda setting: False
        """Whether the engines do not know a setting."""
        self.decided: Callable[[], set[Key]] = set
        """The nodes that are decided, but for those that are being stopped."""
        self.tasks: set[asyncio.Task[None]] = set()
        self.flaky = 0.0
        """Chance that an order is late or doubled."""
        self.outgrown: str | None = None
        """Whose process could need more memory than it is held to."""
        self.remote = False
        """Processes run on hosts of their own: no order to stop one reaches a host that is cut,
        and its address can be had elsewhere."""
        self.host = SimHost()
        self.set_by_seconds = 0.0

    @property
    def wall(self) -> float:
        """By the wall clock of the engines' host, which they measure all their durations with."""
        return asyncio.get_running_loop().time() + self.set_by_seconds

    # -- faults

    def set_clock(self, by_seconds: float) -> None:
        """Set the wall clock of the engines' host, forward or back."""
        self.set_by_seconds += by_seconds

    def boot(self) -> None:
        """The host of the control planes goes down and comes up again, and with it, if it is theirs too, all processes."""
        for key in () if self.remote else list(self.processes):
            self.kill(key)
        self.host.boot()

    def kill(self, key: Key, *, by_order: bool = False) -> None:
        """SIGKILL."""
        engine = self.processes.get(key)
        if engine is None or not engine.alive:
            return
        self.note_losses(key)
        self._still(engine)
        engine.alive, engine.frozen = False, False
        engine.bound = set()
        if not any((e := self.processes.get(k)) is not None and e.holds for k in self.decided()):
            self.lossable |= set(self.acknowledged)  # and so it is said: what it held is lost
        engine.problem = None if by_order else "was killed by SIGKILL"
        if self.witnesses and self.seen():
            self.ended[key] = self.moment()
        for other in self.processes.values():
            if other.follows == engine.spec.address:
                other.linked = other.online = False
        for witness in list(self.witnesses):
            witness(key)

    def take_away(self, key: Key) -> None:
        """It dies, and another takes its address: nothing can be started there."""
        self.unstartable.add(key)
        self.kill(key)

    def fresh(self, id: int) -> bool:
        """Whether a write was on its way at the end of its lead. A primary that takes none without its replicas may go on
        acknowledging for as long as it takes to starve it, wherever it is."""
        by = self.acknowledged.get(id, (0.0, None))[1]
        return (self.remote and by is not None and by.min_replicas > 0) or self.latest(id)

    def latest(self, id: int) -> bool:
        """Whether it was acknowledged no longer before the end of its lead than what may be lost unasked."""
        at, by = self.acknowledged.get(id, (0.0, None))
        return by is None or (self.now if by.acknowledges else by.still_at) - at <= self.in_flight_seconds

    def note_losses(self, key: Key) -> None:
        """What only this process holds, of what has been acknowledged just now, is lost with it."""
        dying = self.processes.get(key)
        if dying is None:
            return
        kept: set[int] = set()
        for other in self.decided() - {key}:
            engine = self.processes.get(other)
            if engine is not None and engine.answers and other not in self.cut:
                kept |= set(engine.writes)  # what only one holds that is frozen, busy or lost cannot be waited for
        self.lossable |= {w for w in set(dying.writes) - kept if self.fresh(w)}

    def freeze(self, key: Key) -> None:
        """SIGSTOP."""
        if (engine := self.processes.get(key)) and engine.alive:
            self.note_losses(key)
            self._still(engine)
            engine.frozen = True

    def _still(self, engine: Engine) -> None:
        """From now on it acknowledges nothing, unless it has not for longer."""
        if engine.acknowledges:
            engine.still_at = asyncio.get_running_loop().time()

    def thaw(self, key: Key) -> None:
        """SIGCONT."""
        if (engine := self.processes.get(key)) and engine.alive:
            engine.frozen = False

    def sever(self, one: Key | str, other: Key | str) -> None:
        """From now on nothing gets from one to the other. Both believe as long as they can that it does."""
        if one != other:
            self.severed.add(frozenset((one, other)))

    def tear(self, replica: Key, primary: Key) -> None:
        """As ``sever``, and the replica knows: its connection is gone. Its primary goes on believing that it has one."""
        self.sever(replica, primary)
        if (engine := self.processes.get(replica)) is not None:
            engine.linked = False

    def mend(self, key: Key) -> None:
        """Whoever could not reach it does again."""
        self.severed = {pair for pair in self.severed if key not in pair}

    def within_reach(self, key: Key) -> bool:
        """Whether everybody reaches it."""
        return key not in self.cut and not any(key in pair for pair in self.severed)

    def moment(self) -> Moment:
        """Of the machine's clock."""
        return self.host.moment()

    @property
    def now(self) -> float:
        """Virtual seconds since the world began."""
        return asyncio.get_running_loop().time()

    def disturb(self, key: Key, trouble: Trouble) -> None:
        """Clients do this to it, if they do nothing else already."""
        if (engine := self.processes.get(key)) and engine.alive and engine.trouble is None:
            if trouble != "crowded":
                self._still(engine)
            engine.trouble, engine.interrupted = trouble, False

    def relieve(self, key: Key) -> None:
        """They have stopped. What waited is carried out, first things first."""
        engine = self.processes.get(key)
        if engine is None:
            return
        engine.trouble = None
        waiting, engine.held_back = engine.held_back, []
        for _, do in waiting:
            if engine.works:
                with contextlib.suppress(OrderFailed):
                    do(engine)

    # -- replication

    def new_history(self) -> str:
        """The id of a history that nobody else has."""
        self.histories += 1
        return f"history-{self.histories}"

    def at(self, address: str) -> Engine | None:
        """The living process that listens on an address; of two, the one that is not cut off."""
        found = [e for e in self.processes.values() if e.alive and address in e.bound]
        return min(found, key=lambda e: e.spec.key in self.cut, default=None)

    def follow(self, engine: Engine, address: str) -> None:
        """REPLICAOF: drop the link, shake hands, resynchronise, stream."""
        engine.role, engine.follows = "replica", address
        engine.linked, engine.online = False, False
        engine.link_epoch += 1
        self.spawn(self._replicate(engine, engine.link_epoch))

    async def _replicate(self, engine: Engine, epoch: int) -> None:
        while engine.alive and engine.link_epoch == epoch:
            await asyncio.sleep(STREAM_SECONDS * (0.5 + self.random.random()))
            primary = self.at(engine.follows)
            reached = primary is not None and primary.works and primary.role == "primary" and self.peers(engine, primary)
            if not reached or not engine.works or primary is None:
                if primary is None:
                    engine.linked = engine.online = False
                continue  # a cut is silent: the replica goes on believing that it is linked
            if not engine.linked:
                await asyncio.sleep(HANDSHAKE_SECONDS * self.random.random())
                if engine.link_epoch != epoch or not primary.works or not engine.works:
                    continue
                engine.online = False
                other = engine.writes != primary.writes[: len(engine.writes)]
                slow = self.sync_seconds or not self.full.isdisjoint((engine.spec.key, primary.spec.key))
                if slow and (other or not engine.history):
                    await self._load(engine, primary, epoch)
                    continue
                if other:
                    engine.writes = []  # a full resynchronisation empties the replica first
                    await asyncio.sleep(HANDSHAKE_SECONDS * self.random.random())
                if primary.role == "primary" and primary.works and engine.works and engine.link_epoch == epoch:
                    self._go_on_with(primary, engine)
                    self.receive(primary, engine)
                    engine.history, engine.linked = True, True
                    engine.haste, engine.acks_at = self.random.choice((1.0, 0.2, 0.005)), self.now + ACK_SECONDS
                continue
            if not engine.online:  # linked by its own word; the primary streams only after the first ACK
                if self.random.random() < engine.haste or (self.now >= engine.acks_at and engine.link_epoch == epoch):
                    engine.online = True
                    self._stream(primary, engine)
                continue
            self._stream(primary, engine)

    async def _load(self, engine: Engine, primary: Engine, epoch: int) -> None:
        """A full synchronisation by way of both disks, that takes its time. Until all is there the replica keeps what it had."""
        snapshot, history = list(primary.writes), primary.lineage.history
        end = self.now + self.sync_seconds * (0.2 + 0.3 * self.random.random())
        while self.now < end or not self.full.isdisjoint((engine.spec.key, primary.spec.key)):
            await asyncio.sleep(0.05)
            there = primary.works and engine.works and self.peers(engine, primary)
            if not there or engine.link_epoch != epoch or primary.role != "primary":
                return
        engine.writes, engine.loading = [], True
        engine.online = True  # all was sent, says its primary, and waits for no ACK
        end = self.now + self.sync_seconds * (0.2 + 0.3 * self.random.random())
        while engine.alive and (self.now < end or not engine.works):
            await asyncio.sleep(0.05)
        engine.loading, engine.writes, engine.history = False, snapshot, True
        engine.lineage = Stream(history, 0)

    def _go_on_with(self, primary: Engine, replica: Engine) -> None:
        """Its history from here on, after what it holds already, is its primary's."""
        if replica.lineage.history != primary.lineage.history:
            before = (replica.lineage.history, len(replica.writes)) if replica.history else ()
            replica.lineage = Stream(primary.lineage.history, 0, *before)

    def may_hold(self, engine: Engine, data: int) -> None:
        """Clients may have filled an engine by now, and a fork may have a copy of it all: a process that is held to
        less is ended."""
        limit = engine.limits.memory_bytes
        if limit is not None and FORK * data > limit:
            self.outgrown = f"{engine.spec.key[1]} may hold {data} bytes, its process {limit} with a fork's copy"
            self.kill(engine.spec.key)

    def receive(self, primary: Engine, replica: Engine) -> None:
        """Whatever of its stream the replica does not have yet."""
        self.may_hold(replica, max(primary.maxmemory, replica.maxmemory))  # it takes whatever its primary has
        replica.writes = list(primary.writes)

    def _stream(self, primary: Engine, replica: Engine) -> None:
        self.receive(primary, replica)
        key = replica.spec.key
        primary.acknowledged_at[key] = self.wall
        since, last = primary.feeds.get(key, (self.now, self.now))
        primary.feeds[key] = since if self.now - last <= BREAK_SECONDS else self.now, self.now

    def lacks_replicas(self, engine: Engine) -> bool:
        """Whether a primary refuses writes for want of replicas (NOREPLICAS)."""
        return sum(at >= self.wall - LAG_SECONDS for at in engine.acknowledged_at.values()) < engine.min_replicas

    def peers(self, one: Engine, other: Engine) -> bool:
        """Whether two processes reach each other. Remote hosts that are cut off are cut off together."""
        if self.severed and frozenset((one.spec.key, other.spec.key)) in self.severed:
            return False
        if self.remote:
            return (one.spec.key in self.cut) == (other.spec.key in self.cut)
        return one.spec.key not in self.cut and other.spec.key not in self.cut

    async def progress(self, key: Key) -> None:
        """Goes on when the process is not stuck (any more)."""
        while key in self.stuck:
            await asyncio.sleep(0.05)

    def spawn(self, coroutine) -> None:  # type: ignore[no-untyped-def]
        """Run in the background, until the world ends."""
        task = asyncio.get_running_loop().create_task(coroutine, context=outside())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def note_leaders(self) -> None:
        """Who is a primary now, who tells what it is asked, and whether somebody asks."""
        if self.blind or not self.attended():
            self.unattended_at = self.now
        for key, engine in self.processes.items():
            since = self.answering_since.pop(key, self.now)
            if engine.answers:
                self.answering_since[key] = since
            if engine.works and engine.role == "primary":
                self.led_at[key] = self.now

    async def elsewhere(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What comes of something that goes on whether or not whoever waits for it is halted."""
        return await asyncio.get_running_loop().create_task(coroutine, context=outside())

    # -- clients

    def write(self, endpoint: str, id: int) -> bool:
        """A client's write at an endpoint; True: acknowledged."""
        engine = self.at(endpoint)
        if engine is None or not engine.works or engine.loading or engine.spec.key in self.cut or engine.role != "primary":
            return False
        return self.take(engine, id)

    def take(self, engine: Engine, id: int) -> bool:
        """A write that has reached an engine that leads."""
        if self.wall < engine.paused_until or engine.trouble == "paused" or self.lacks_replicas(engine):
            return False
        self.may_hold(engine, engine.maxmemory)
        if engine.works:
            engine.writes.append(id)
            self.acknowledged[id] = asyncio.get_running_loop().time(), engine
        return engine.works
