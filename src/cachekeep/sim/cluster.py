"""Simulated engines in cluster mode: which nodes know each other, epochs, votes, slots, and keys that live in them.

Physics as of the engines: everybody believes what the newest epoch that it has heard of says; gossip takes its time and is lost
where a network is cut; a vote needs a majority of the primaries that own slots, and none is given twice about one shard within two
node timeouts; a primary that hears from no majority for a node timeout serves nobody; a process begins with what its cluster file
says. So every way of losing a slot or a key in a real one exists here.
"""

from __future__ import annotations

import asyncio

from cachekeep.compute.contract import Key
from cachekeep.plan.slots.ranges import SLOTS, Ranges, common, compact, count, union, without
from cachekeep.sim.member import NODE_TIMEOUT_SECONDS, REJOIN_SECONDS, Member, Op, Peer, member_of
from cachekeep.sim.world import NOBODY, Engine, World

WRITABLE_SECONDS, BAN_SECONDS = 2.0, 60.0
GOSSIP_SECONDS = 0.1


class ClusterWorld(World):
    """A world whose engines form a cluster. Keys are slots here: each slot that clients use holds one key or none."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.has_bus = True
        self.members: dict[Key, Member] = {}
        self.ops: list[Op] = []
        self.shard_ids_apart = seed % 2 == 0
        """A primary that loses its last slot to a node of its own shard goes on empty-handed, instead of following it."""

        self.by_order: set[Key] = set()
        """Processes that are stopped because a keeper wants it."""
        self.slowness = self.random.choice((1.0, 20.0))
        """Keys and slots take so many times longer to move one by one: what may happen in between happens."""

    def set_clock(self, by_seconds: float) -> None:
        """Whoever answers at all is heard again before anybody takes it for lost: an engine looks for those that owe it an
        answer."""
        super().set_clock(by_seconds)
        for member in self.members.values():
            for id, peer in member.peers.items():
                if (other := self.at_id(id)) is not None and other.engine.works and self.peers(member.engine, other.engine):
                    peer.heard += by_seconds

    def at_id(self, id: str) -> Member | None:
        """The living process of a node."""
        return next((m for m in self.members.values() if m.id == id and m.engine.alive), None)

    def serving(self) -> list[Member]:
        """Those that clients reach."""
        return [m for m in self.members.values() if m.engine.works and m.engine.spec.key not in self.cut]

    # -- processes

    def join(self, engine: Engine) -> None:
        """A process begins with what its file says."""
        member = member_of(engine, self.wall)
        self.members[engine.spec.key] = member
        if member.follows:
            self.follow(engine, member.peers[member.follows].address)
        else:
            engine.role, engine.follows = "primary", NOBODY
        self.spawn(self._live(member))

    def thaw(self, key: Key) -> None:
        """What came in meanwhile is read before any client is served."""
        super().thaw(key)
        if (member := self.members.get(key)) and member.engine.alive:
            for other in list(self.members.values()):
                self._send(other, member)
            self._judge(member)

    def note_losses(self, key: Key) -> None:
        """Values that only this process held, of all that are meant to hold them. ``lossable`` holds values here. What a replica
        holds is in this danger when its primary is gone already; to stop it by order then is not an accident."""
        member = self.members.get(key)
        if member is None:
            return
        kin = [m for k, m in self.members.items() if k != key and _group(m) == _group(member) and m.engine.works]
        if not member.leads and (key in self.by_order or any(m.leads for m in kin)):
            return
        # Whose slots it has taken loses its keys too, as soon as it hears of that.
        kin = [m for m in kin if not (m.leads and member.leads and m.epoch < member.epoch and common(m.slots, member.slots))]
        decided = self.decided()
        kept = {v for m in kin if m.engine.spec.key in decided for v in self.data(m).values()}
        mine = {
            v
            for slot, v in self.data(member).items()
            if not member.leads or slot in member.importing or common(((slot, slot),), member.slots)
        }
        others = [m for k, m in self.members.items() if k != key and _group(m) == _group(member) and m.engine.holds]
        self.lossable |= {v for v in mine - kept if not others or self.fresh(v)}

    async def _live(self, member: Member) -> None:
        while member.engine.alive:
            await asyncio.sleep(GOSSIP_SECONDS * (0.5 + self.random.random()))
            if not member.engine.works:
                continue
            self._tell(member)
            self._judge(member)
            if self._orphaned(member):
                member.stood_at = self.wall
                self.spawn(self.stand(member, forced=False))

    # -- gossip

    def _tell(self, member: Member) -> None:
        for id in list(member.peers):
            if (other := self.at_id(id)) is not None:
                self._send(member, other)

    def broadcast(self, member: Member) -> None:
        """A change is told at once, as fast as a network is."""

        async def soon() -> None:
            await asyncio.sleep(0.001 + 0.01 * self.random.random())
            self._tell(member)

        self.spawn(soon())

    def _send(self, sender: Member, to: Member) -> None:
        """One packet: who I am, what I own, what others I know. Whoever does not know the sender does not listen."""
        if not (sender.engine.works and to.engine.works and self.peers(sender.engine, to.engine)) or sender is to:
            return
        if to.engine.spec.key in self.deaf:
            return
        peer = to.peers.get(sender.id)
        if peer is None:
            return
        led_by = sender.id if sender.leads else sender.follows
        epoch, slots = self._epoch(sender, led_by), sender.owner.get(led_by, ())  # a replica speaks for its primary
        peer.heard, peer.address, peer.epoch = self.wall, sender.engine.spec.address, max(peer.epoch, epoch)
        if not sender.leads and not peer.follows:
            self._demoted(to, sender, epoch)
        peer.follows = "" if sender.leads else sender.follows
        peer.told = peer.told or sender.engine.linked
        to.current_epoch = max(to.current_epoch, sender.current_epoch)
        if sender.leads:
            if to.leads and sender.epoch == to.epoch and to.id > sender.id:  # two of one epoch: one of them moves on
                to.current_epoch += 1
                to.epoch = to.current_epoch
            self._claim(to, sender.id, sender.epoch, sender.slots)
        for id, ranges in [] if sender.engine.spec.key in self.deaf else list(to.owner.items()):
            # UPDATE: somebody else has had these since
            sure = common(without(ranges, to.unclaimed), slots)
            if id != sender.id and sure and self._epoch(to, id) > epoch and id in sender.peers:
                self._hear_of(sender, id, self._epoch(to, id), ranges)
        if not sender.leads and peer.follows and to.follows == sender.id and peer.follows != to.id and peer.follows in to.peers:
            self._follow(to, peer.follows)
        for id, known in sender.peers.items():
            other = self.at_id(id) if id != to.id and id not in to.peers and to.banned.get(id, 0.0) < self.wall else None
            if other is not None and other.engine.works and self.peers(to.engine, other.engine):
                to.peers[id] = Peer(known.address, known.follows, known.epoch, self.wall)

    def _demoted(self, member: Member, former: Member, epoch: int) -> None:
        """A node that this one took for a primary follows another: its slots are that one's,
        if it counts both to one shard, else nobody's."""
        slots = member.owner.pop(former.id, ())
        member.unclaimed = without(member.unclaimed, slots)
        if slots and not self.shard_ids_apart and former.follows in member.peers:
            member.owner[former.follows] = union(member.owner.get(former.follows, ()), slots)
            member.peers[former.follows].epoch = max(member.peers[former.follows].epoch, epoch)

    def _hear_of(self, member: Member, id: str, epoch: int, slots: Ranges) -> None:
        peer = member.peers[id]
        if peer.epoch < epoch:  # nothing new else
            peer.epoch, peer.follows = epoch, ""
            self._claim(member, id, epoch, slots)

    def _epoch(self, member: Member, id: str) -> int:
        return member.epoch if id == member.id else member.peers[id].epoch if id in member.peers else 0

    def _claim(self, member: Member, id: str, epoch: int, slots: Ranges) -> None:
        """``member`` hears that ``id`` owns these: true, unless it knows of a newer owner. Slots on their way in are not touched.

        What ``id`` owned so far and does not claim any more stays with it until another claims it, at whatever epoch, and is not
        told to anybody meanwhile (engines since Redis 7.0.13).
        """
        claimed = without(slots, compact(member.importing))
        before = member.slots
        led_by = member.owner.get(member.follows, ()) if member.follows else ()
        for other, ranges in list(member.owner.items()):
            if other == id or not (contested := common(ranges, claimed)):
                continue
            if self._epoch(member, other) >= epoch:
                kept = without(contested, member.unclaimed)
                claimed = without(claimed, kept)
                contested = without(contested, kept)
            member.owner[other] = without(ranges, contested)
        member.unclaimed = without(member.unclaimed, union(claimed, common(slots, member.owner.get(id, ()))))
        if id != member.id:
            member.unclaimed = union(member.unclaimed, without(member.owner.get(id, ()), slots))
        member.owner[id] = union(member.owner.get(id, ()), claimed)
        lost = without(before, member.slots)
        if lost:
            self._lose(member, id, lost)
        elif (
            led_by
            and not member.owner.get(member.follows)
            and id != member.follows
            and id in member.peers
            and self._kin(member, id)
        ):
            self._follow(member, id)

    def _kin(self, member: Member, id: str) -> bool:
        other = self.at_id(id)
        return other is not None and _group(other) == _group(member)

    def _lose(self, member: Member, to: str, lost: Ranges) -> None:
        """Keys of slots that somebody else owns now go; without a last slot, so does the lead, within a shard."""
        member.handing = without(member.handing, lost)
        for slot in [s for s in member.migrating if common(((s, s),), lost)]:
            del member.migrating[slot]
        if not member.slots and self._kin(member, to) and member.leads:
            self._note_losses_to(member, to)
            if not self.shard_ids_apart:
                self._follow(member, to)
                return
        for slot in [k for k in self.data(member) if common(((k, k),), lost)]:
            self.write_op(member, slot, None)

    def _note_losses_to(self, loser: Member, id: str) -> None:
        winner = self.at_id(id)
        if winner is not None:
            self.lossable |= set(self.data(loser).values()) - set(self.data(winner).values()) if self._unfenced(loser) else set()

    def _unfenced(self, loser: Member) -> bool:
        """It was out of everybody's sight for so long that the engines elected another by themselves."""
        return self.wall - loser.minority_at < 2 * NODE_TIMEOUT_SECONDS

    def _follow(self, member: Member, id: str) -> None:
        member.follows = id
        member.migrating.clear()
        member.importing.clear()
        self.follow(member.engine, member.peers[id].address)

    # -- state

    def _judge(self, member: Member) -> None:
        """``cluster_state``."""
        owners = [id for id, ranges in member.owner.items() if ranges]
        reached = [id for id in owners if id == member.id or self._hears(member, id)]
        minority = len(reached) <= len(owners) // 2
        if minority:
            member.minority_at = self.wall
        covered = count(union(*(member.owner[id] for id in reached))) == SLOTS
        able = covered and not minority
        if able and member.leads and not member.ok:
            able = self.wall - member.born >= WRITABLE_SECONDS and self.wall - member.minority_at >= REJOIN_SECONDS
        member.ok = able

    def _hears(self, member: Member, id: str) -> bool:
        peer = member.peers.get(id)
        return peer is not None and self.wall - peer.heard < member.timeout_seconds

    def _orphaned(self, member: Member) -> bool:
        return (
            not member.leads
            and not member.abstains
            and member.follows in member.peers
            and not self._hears(member, member.follows)
            and bool(member.owner.get(member.follows))
            and not member.engine.linked
            and self.wall - member.stood_at > 2 * NODE_TIMEOUT_SECONDS
        )

    # -- elections

    async def stand(self, member: Member, *, forced: bool) -> None:
        """Ask every primary that owns slots for its vote."""
        member.current_epoch += 1
        epoch, primary = member.current_epoch, member.follows
        claimed = self._epoch(member, primary)
        voters = [id for id, ranges in member.owner.items() if ranges]

        async def ask(id: str) -> bool:
            await asyncio.sleep(0.001 + 0.015 * self.random.random())
            voter = self.at_id(id)
            if voter is None or not voter.engine.works or not member.engine.works or not self.peers(voter.engine, member.engine):
                return False
            return self._vote(voter, member, primary, epoch, claimed, forced)

        votes = await asyncio.gather(*(ask(id) for id in voters))
        able = member.engine.works and not member.leads and member.follows == primary and (forced or not member.abstains)
        if sum(votes) > len(voters) // 2 and able:
            if not forced and (old := next((m for m in self.members.values() if m.id == primary), None)) is not None:
                self.lossable |= set(self.data(old).values()) - set(
                    self.data(member).values()
                )  # nobody but the engines decided this
            member.epoch = epoch
            self.lead(member)

    def _vote(self, voter: Member, candidate: Member, primary: str, epoch: int, claimed: int, forced: bool) -> bool:
        peer = voter.peers.get(candidate.id)
        if peer is None or peer.follows != primary or not voter.leads or not voter.slots:
            return False
        if epoch < voter.current_epoch or voter.last_vote_epoch >= epoch or not (forced or not self._hears(voter, primary)):
            return False
        voter.current_epoch = epoch
        if self.wall - voter.voted.get(primary, -100.0) < 2 * NODE_TIMEOUT_SECONDS:
            return False
        wants = candidate.owner.get(primary, ())
        if any(common(ranges, wants) and self._epoch(voter, id) > claimed for id, ranges in voter.owner.items()):
            return False
        voter.last_vote_epoch, voter.voted[primary] = epoch, self.wall
        return True

    def lead(self, member: Member) -> None:
        """It takes the slots of its primary, at its own, newer epoch."""
        engine, old = member.engine, member.follows
        member.owner[member.id] = union(member.slots, member.owner.pop(old, ()))
        member.follows = ""
        engine.lead(self.new_history())
        self._judge(member)
        self.broadcast(member)

    def seize(self, member: Member) -> None:
        """``TAKEOVER``: it leads, and nobody is asked."""
        self.newer_epoch(member)
        self.lead(member)

    def newer_epoch(self, member: Member) -> None:
        """A greater one than all that it knows, without asking anybody."""
        known = max([member.current_epoch, member.epoch, *(p.epoch for p in member.peers.values())])
        member.current_epoch = member.epoch = known + 1

    # -- keys

    def data(self, member: Member) -> dict[int, int]:
        """What its stream amounts to."""
        engine = member.engine
        epoch, length = member.folded
        if epoch != engine.link_epoch or engine.role != "primary" or length > len(engine.writes):
            member.held, length = {}, 0
        for id in engine.writes[length:]:
            key, value = self.ops[id]
            if value is None:
                member.held.pop(key, None)
            else:
                member.held[key] = value
        member.folded = (engine.link_epoch, len(engine.writes))
        return member.held

    def write_op(self, member: Member, key: int, value: int | None) -> None:
        """One more entry of its stream."""
        self.ops.append(Op(key, value))
        member.engine.writes.append(len(self.ops) - 1)

    def accepts(self, member: Member, slot: int, *, asking: bool = False) -> bool:
        """Whether a client's write is carried out here."""
        engine = member.engine
        one: Ranges = ((slot, slot),)
        if not engine.works or engine.spec.key in self.cut or not member.leads or not member.ok:
            return False
        if self.wall < engine.paused_until or common(one, member.handing):
            return False
        if not common(one, member.slots):
            return asking and slot in member.importing
        return slot not in member.migrating or slot in self.data(member)

    def half_open(self, slot: int) -> bool:
        """Somebody is being given this slot, key by key: part of it may be where only ASK leads."""
        return any(slot in m.importing for m in self.members.values())

    def route(self, slot: int, first: Member) -> Member | None:
        """Where a client that asks ``first`` ends up, by MOVED and ASK; None: nobody takes it now."""
        at: Member | None = first
        asking = False
        for _ in range(6):
            if at is None or not at.engine.works or at.engine.spec.key in self.cut:
                return None
            if self.accepts(at, slot, asking=asking):
                return at
            owner = at.owner_of(slot)
            asking = owner == at.id and at.ok and slot in at.migrating and slot not in self.data(at)
            next_id = at.migrating[slot] if asking else owner
            if next_id is None or next_id == at.id:
                return None
            at = self.at_id(next_id)
        return None


def _group(member: Member) -> str:
    return member.engine.spec.key[1].rpartition("-")[0]
