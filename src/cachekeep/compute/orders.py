"""Orders to one engine: who leads, who follows which primary, where it listens, how it is set, which nodes it knows."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Mapping, Sequence

from cachekeep.clock import Clock
from cachekeep.compute.beliefs import Beliefs
from cachekeep.compute.commands import ORDER_SECONDS, Command, Commands, but_for, failures, offset, replicaof, set_bind
from cachekeep.compute.contract import ApplyParts, PublishDiscovery, Target, Targets
from cachekeep.compute.line import Reply, resp, text
from cachekeep.compute.lines import Lines
from cachekeep.compute.logins import come_as
from cachekeep.compute.looks import Looks
from cachekeep.engines import discovery
from cachekeep.engines.launch import NOBODY_PORT
from cachekeep.engines.replies import reaches, watchers
from cachekeep.engines.users import OUR_USERS
from cachekeep.errors import OrderFailed
from cachekeep.model import (
    Admit,
    Bind,
    Detach,
    Disown,
    Elect,
    Follow,
    Interrupt,
    Introduce,
    Meet,
    Promote,
    Replicate,
    Witness,
)
from cachekeep.model.traits import traits
from cachekeep.plan.slots.ranges import common, count

_REACH_SECONDS = 0.15
"""Within this a replica's connection to its primary is taken, or its host is out of reach."""
_NEXT_TRY_SECONDS = 1.2
"""A replica that could not even try does so again within a second (the engines' ``replicationCron``)."""
_ELECTION_SECONDS = 0.5
"""An election that was started is watched for so long; what comes of it later is seen by looking."""
_MEETING_SECONDS = 0.2
_INTRODUCING_SECONDS = 1.0
_NOBODY_HAS_SO_MANY = "1000"
"""Replicas. ``WAIT`` asks for acknowledgements only while too few have come."""
"""A handshake takes one or two turns of an engine's clock, which comes ten times a second."""
_GOSSIP_SECONDS = 2.0
"""The engines tell each other what they own at least this often."""
_POLL_SECONDS = 0.002
LEAD = ("REPLICAOF", "NO", "ONE")
DROP = (("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"), ("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes"))


class Orders:
    """Each method carries out the effect of its name."""

    def __init__(self, commands: Commands, beliefs: Beliefs, looks: Looks, lines: Lines, clock: Clock) -> None:
        self._commands, self._beliefs, self._looks, self._lines, self._clock = commands, beliefs, looks, lines, clock

    # -- replication

    async def promote(self, effect: Promote, at: Targets) -> None:
        async with self._commands.one_at_a_time(at[effect.node]):
            await self.lead(at[effect.node], effect.addresses, effect.order)

    async def lead(self, target: Target, addresses: tuple[str, ...], order: int) -> None:
        """Promote and bind in one round trip; then the engine must say that it leads, and with what it begins."""
        await self._commands.let_pass(order, target, leading=True)
        if (await self._commands.replication(target, LEAD, set_bind(addresses)))["role"] != "master":
            raise OrderFailed(f"{target.name} was told to lead and does not")

    async def follow(self, effect: Follow, at: Targets) -> None:
        target, primary = at[effect.node], at[effect.primary]
        async with self._commands.one_at_a_time(target):
            await self._commands.let_pass(effect.order, target)
            await self._commands.send(target, replicaof(primary.address, primary.port))

    async def detach(self, effect: Detach, at: Targets) -> None:
        target = at[effect.node]
        async with self._commands.one_at_a_time(target):
            await self._commands.let_pass(effect.order, target)
            await self._commands.send(target, replicaof(target.address, NOBODY_PORT))

    async def witness(self, effect: Witness, at: Targets) -> None:
        target = at[effect.node]
        async with self._commands.one_at_a_time(target):
            await self._commands.send(target, ("CLIENT", "KILL", "TYPE", "master"))
            started = self._clock.monotonic()
            while True:
                (role,) = await self._commands.send(target, ("ROLE",))
                patience = _REACH_SECONDS if reaches(role) is False else _NEXT_TRY_SECONDS
                if reaches(role) or self._clock.monotonic() > started + patience:
                    return
                await self._clock.sleep(0.005)

    async def admit(self, effect: Admit, at: Targets) -> None:
        """Confirmed: it is linked, or receives what it lacks. Told anew which primary to follow, it tries at once. In cluster mode
        it cannot be told, and tries within a second."""
        target, primary = at[effect.node], at[effect.primary]
        async with self._commands.one_at_a_time(target):
            await self._commands.let_pass(effect.order, target)
            with failures(primary):
                await self._lines.open(primary)
                async with self._lines.room(primary):
                    if not target.cluster_id:
                        again = (replicaof(target.address, NOBODY_PORT), replicaof(primary.address, primary.port))
                        await self._commands.send(target, *again)
                    until = self._clock.monotonic() + _NEXT_TRY_SECONDS
                    while self._clock.monotonic() < until:
                        (role,) = await self._commands.send(target, ("ROLE",))
                        if reaches(role):
                            return
                        await self._clock.sleep(0.005)
            raise OrderFailed(f"{target.name} was not let in at {primary.name}")

    # -- what it does

    async def interrupt(self, effect: Interrupt, at: Targets) -> None:
        """Confirmed: the script is being ended, or it cannot be; then looks call it ``unkillable``. Of a script ``SCRIPT KILL``
        speaks, of a function ``FUNCTION KILL``; each refuses what is the other's (BUSY)."""
        target = at[effect.node]
        async with self._commands.one_at_a_time(target):
            with failures(target):
                async with asyncio.timeout(ORDER_SECONDS):
                    line = await self._lines.open(target)
                    replies = await line.ask(resp(("SCRIPT", "KILL"), ("FUNCTION", "KILL")), 2)
            if not any(reply == "OK" or str(reply).startswith("NOTBUSY") for reply in replies):
                self._looks.cannot_be_interrupted(target.key)

    async def bind(self, effect: Bind, at: Targets) -> None:
        target = at[effect.node]
        async with self._commands.one_at_a_time(target):
            await self._commands.send(target, set_bind(effect.addresses))
            if effect.drop_clients:
                await self._commands.send(target, *DROP)

    async def apply_parts(self, effect: ApplyParts, at: Targets) -> None:
        target = at[effect.node]
        async with self._commands.one_at_a_time(target):
            if effect.acl:
                await self._apply_users(target, effect.acl, effect.gone)
            if effect.login:
                await self._apply_settings(target, come_as(effect.login, target))
            if effect.settings:
                await self._apply_settings(target, effect.settings)
            if effect.tls:
                await self._apply_settings(target, effect.tls)

    async def _apply_users(self, target: Target, lines: Sequence[str], gone: Sequence[str]) -> None:
        """Who may not come in any more, or has never shown the password that is asked for now, does not stay either. Engines see to
        it themselves where a user goes, or loses a channel; whoever watches all commands would go on watching."""
        names = [line.partition(" ")[0] for line in lines]
        before = await self._commands.send(target, *(("ACL", "GETUSER", name) for name in names))
        orders: list[Command] = [("ACL", "SETUSER", *line.split()) for line in lines]
        orders += [("ACL", "DELUSER", *gone)] if gone else []
        orders += [
            ("CLIENT", "KILL", "USER", name)
            for name, line, seen in zip(names, lines, before, strict=True)
            if not _lets_stay(line, seen)
        ]
        *_, clients = await self._commands.send(target, *orders, ("CLIENT", "LIST"))
        if watching := watchers(clients, set(names) - OUR_USERS):
            await self._commands.send(target, *(("CLIENT", "KILL", "ID", id) for id in watching))

    async def _apply_settings(self, target: Target, settings: Mapping[str, str]) -> None:
        """All of them or none."""
        if traits(target.engine).speaks == "memcached":
            for name, value in settings.items():
                await self._commands.send_memcached(target, f"{name} {value}\r\n".encode(), expect="OK")
            return
        if _version(target) >= (7, 0):  # atomic since then
            await self._commands.send(target, ("CONFIG", "SET", *(word for pair in settings.items() for word in pair)))
            return
        before = [await self._commands.send(target, ("CONFIG", "GET", name)) for name in settings]
        done: list[Command] = []
        for (name, value), (old,) in zip(settings.items(), before, strict=True):
            try:
                await self._commands.send(target, ("CONFIG", "SET", name, value))
            except OrderFailed:
                for undo in reversed(done):
                    await self._commands.send(target, undo)
                raise
            if isinstance(old, list) and len(old) == 2:
                done.append(("CONFIG", "SET", name, text(old[1])))

    async def publish_discovery(self, effect: PublishDiscovery, at: Targets) -> None:
        data = effect.payload.encode()
        command = b"set %b 0 0 %d\r\n%b\r\n" % (discovery.KEY.encode(), len(data), data)
        async with self._commands.one_at_a_time(at[effect.node]):
            await self._commands.send_memcached(at[effect.node], command, expect="STORED")

    # -- cluster mode: who leads

    async def elect(self, effect: Elect, at: Targets) -> None:
        """Confirmed: the election has begun. Waits a moment for its end."""
        target = at[effect.node]
        async with self._commands.one_at_a_time(target):
            if effect.seize:
                await self._has_heard(target, [at[o] for o in effect.others])
            await self._commands.let_pass(effect.order, target, leading=True)
            await self._commands.send(target, ("CLUSTER", "FAILOVER", "TAKEOVER" if effect.seize else "FORCE"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ELECTION_SECONDS):
                while (await self._commands.replication(target))["role"] != "master":
                    await self._clock.sleep(_POLL_SECONDS)

    async def _has_heard(self, target: Target, others: Sequence[Target]) -> None:
        """Wait until it no longer believes that its primary owned what others own."""
        owned = await self._beliefs.owned_by(others)
        try:
            async with asyncio.timeout(_GOSSIP_SECONDS):
                while contested := common((await self._beliefs.of(target)).inherits, owned):
                    await self._clock.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise OrderFailed(f"{target.name} would take {count(contested)} slots that others own by now") from None

    async def replicate(self, effect: Replicate, at: Targets) -> None:
        async with self._commands.one_at_a_time(at[effect.node]):
            await self._commands.let_pass(effect.order, at[effect.node])
            await self.become_replica(at[effect.node], at[effect.primary])

    async def become_replica(self, target: Target, primary: Target) -> None:
        """Where the engine has not done it already. One that lost its last slot to a node that it does not count to its own shard
        (Valkey: shard ids of a new cluster may stay apart) goes on as an empty-handed primary; and a primary becomes a replica only
        if it holds no keys. Without slots it holds none that anybody could ask it for."""
        if (await self._commands.replication(target))["role"] == "master":
            if (await self._beliefs.of(target)).slots:
                raise OrderFailed(f"{target.name} owns slots, so it cannot become a replica")
            await self._commands.send(target, ("FLUSHALL",))
        await self._commands.send(target, ("CLUSTER", "REPLICATE", primary.cluster_id))

    # -- cluster mode: acquaintance

    async def meet(self, effect: Meet, at: Targets) -> None:
        """Confirmed: the handshakes have begun."""
        target, others = at[effect.node], [at[o] for o in effect.others]
        async with self._commands.one_at_a_time(target):
            await self._commands.send(target, *(("CLUSTER", "MEET", o.address, str(o.port)) for o in others))
            ids = {o.cluster_id for o in others}
            with contextlib.suppress(TimeoutError):  # what comes of it later is seen by looking
                async with asyncio.timeout(_MEETING_SECONDS):
                    while ids - (await self._beliefs.of(target)).knows:
                        await self._clock.sleep(_POLL_SECONDS)
        self._beliefs.forget(target.key)

    async def introduce(self, effect: Introduce, at: Targets) -> None:
        """Engines leave out of ``CLUSTER SLOTS`` a replica of which they know no offset but 0, and hear of it by chance, in up to
        10 s. ``WAIT`` moves the offset of a stream in which nothing was written yet: it asks for an acknowledgement there. Then the
        replica says hello once more (``CLUSTER MEET``), and its offset with it."""
        target, primary, others = at[effect.node], at[effect.primary], [at[o] for o in effect.others]
        async with self._commands.one_at_a_time(target):
            if offset(await self._commands.replication(target)) <= 1:
                await self._commands.send(primary, ("WAIT", _NOBODY_HAS_SO_MANY, "1"))
            await self._commands.send(target, *(("CLUSTER", "MEET", o.address, str(o.port)) for o in others))
            with contextlib.suppress(TimeoutError):  # what comes of it later is seen by looking
                async with asyncio.timeout(_INTRODUCING_SECONDS):
                    for other in others:
                        while target.cluster_id not in await self._beliefs.told_by(other):
                            await self._clock.sleep(_POLL_SECONDS)
        for node in (target, *others):
            self._beliefs.forget(node.key)

    async def disown(self, effect: Disown, at: Targets) -> None:
        target = at[effect.node]
        async with self._commands.one_at_a_time(target):
            for id in effect.ids:
                with but_for("Unknown node"):
                    await self._commands.send(target, ("CLUSTER", "FORGET", id))
        self._beliefs.forget(target.key)


def _lets_stay(line: str, before: Reply) -> bool:
    """Whether connections of a user go on when it becomes what its line says; ``before``: as the engine told it (ACL GETUSER)."""
    _, _, state, *rest = line.split()
    fields = before if isinstance(before, list) else []
    flags: object = next((value for name, value in itertools.pairwise(fields) if name == b"flags"), [])
    open_before = isinstance(flags, list) and b"nopass" in flags and b"on" in flags
    return state == "on" and ("nopass" in rest or not open_before)


def _version(target: Target) -> tuple[int, ...]:
    return tuple(int(part) for part in target.version.split(".")[:2])
