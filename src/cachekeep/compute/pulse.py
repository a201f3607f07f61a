"""A heartbeat: asks one engine at intervals and wakes somebody when the answer changes or stays away."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable

from cachekeep.clock import Clock
from cachekeep.compute.contract import Key, Target
from cachekeep.compute.line import Line, LineLost, Reply, ReplyError, resp
from cachekeep.engines import discovery
from cachekeep.engines.replies import acquaintances, pulse
from cachekeep.model import Moment
from cachekeep.model.traits import traits

_ASK_ENGINE = resp(("INFO", "replication"))
_ASK_IN_CLUSTER = _ASK_ENGINE + resp(("CLUSTER", "INFO"))
_ASK_MEMCACHED = b"get %b\r\n" % discovery.KEY.encode()
_NOTHING = object()
_SLOTS = 4
"""Into so many groups the beats of an interval are gathered: each group wakes the loop once, and what it runs is warm then."""
_EARLY_SECONDS = 0.001
_HOPELESS_SECONDS = 5.0
"""A line that owes an answer for this long, and for several deadlines, may be given up."""
_HOPELESS_DEADLINES = 5
_REOPEN_SECONDS = 0.1
"""A line that is lost within this time of its opening waits for the next beat: an engine may be closing all that it accepts."""


class Moments:
    """Timers of many pulses: those that are due in the same millisecond share one of the loop's, which costs more than a beat."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due: defaultdict[int, list[Callable[[], None]]] = defaultdict(list)

    def call_at(self, at: float, call: Callable[[], None]) -> None:
        """Call at a time of the loop's, to the millisecond. It cannot be called off: whoever has changed its mind ignores it."""
        moment = round(at * 1000)
        calls = self._due[moment]
        if not calls:
            self._loop.call_at(moment / 1000, self._come, moment)
        calls.append(call)

    def _come(self, moment: int) -> None:
        for call in self._due.pop(moment):
            call()


class Pulse:
    """The heartbeat of one node. It has no task of its own but while it connects: timers and callbacks, for there are hundreds.

    It wakes: at the first answer; at a missed deadline and at each interval while the silence lasts; when the node answers again;
    when role, followed primary, link or the state of a replica, (cluster mode) the number of nodes that it knows, or (Memcached)
    the discovery list, is another than the last time. A broken line is opened anew at once; if that is refused, it wakes. ``heard``
    gets every reply about replication, with the moment of the question.
    """

    def __init__(
        self,
        target: Target,
        *,
        open_line: Callable[[], Awaitable[Line]],
        give_up: Callable[[], None],
        interval_seconds: float,
        deadline_seconds: float,
        wake: Callable[[Key], None],
        moments: Moments,
        heard: Callable[[Reply, Moment], object],
        clock: Clock,
    ) -> None:
        self.terms = (target, interval_seconds, deadline_seconds, wake)
        self._key = target.key
        self._replicated = traits(target.engine).replicates
        self._question, self._replies = _ASK_ENGINE if self._replicated else _ASK_MEMCACHED, 1
        if target.cluster_id:
            self._question, self._replies = _ASK_IN_CLUSTER, 2
        self._open_line = open_line
        self._give_up = give_up
        self._interval = interval_seconds
        self._deadline = deadline_seconds
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._line: Line | None = None
        self._opening: asyncio.Task[None] | None = None
        self._heard, self._clock = heard, clock
        self._asked_at: float | None = None
        self._asked: Moment | None = None
        self._reopen_at = 0.0
        self._seen: object = _NOTHING
        self._silent = False
        self._stopped = False
        # Hundreds of nodes: spread over the interval, yet many at the same moment, so that the loop wakes seldom.
        slot = interval_seconds / _SLOTS
        first = (self._loop.time() // slot + 1 + hash(target.key) % _SLOTS) * slot
        self._next_at = first
        self._moments = moments
        self._rest(first)

    def stop(self) -> None:
        """No beat and no wake after this."""
        self._stopped = True
        if self._opening is not None:
            self._opening.cancel()

    def lost(self) -> None:
        """The line was lost, perhaps between two beats: ask again at once, over a new one, unless that is being lost too."""
        now = self._loop.time()
        if self._stopped or self._asked_at is not None:
            return
        if now >= self._reopen_at:
            self._reopen_at = now + _REOPEN_SECONDS
            self._ask(now)
            self._rest(min(self._next_at, now + self._deadline))
        else:
            self._silent = True
            self._wake(self._key)

    def _rest(self, until: float) -> None:
        """Beat then, and not before."""
        self._due_at = until
        self._moments.call_at(until, self._beat)

    def _beat(self) -> None:
        now, asked_at = self._loop.time(), self._asked_at
        if self._stopped or now < self._due_at - _EARLY_SECONDS:
            return
        if asked_at is None:
            until = self._next_at
            if now >= until - _EARLY_SECONDS:
                self._next_at += self._interval * max(1, (now - until) // self._interval + 1)
                self._ask(now)
                until = min(self._next_at, now + self._deadline)
        else:
            waited = now - asked_at
            if waited >= self._deadline - _EARLY_SECONDS:
                self._silent = True
            until = now + (self._interval if self._silent else min(self._interval, self._deadline - waited))
            if self._silent:
                self._wake(self._key)
            if waited >= max(_HOPELESS_SECONDS, _HOPELESS_DEADLINES * self._deadline):
                self._asked_at = None
                self._give_up()
        self._rest(until)

    def _ask(self, now: float) -> None:
        self._asked_at, self._asked = now, self._clock.moment()
        if self._line is not None and self._line.open:
            self._line.send(self._question, self._replies, self._answered)
        elif self._opening is None or self._opening.done():
            self._opening = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            self._line = await self._open_line()
        except (LineLost, ReplyError):  # known now rather than at the deadline
            self._silent, self._asked_at = True, None
            self._wake(self._key)
        else:
            self._line.send(self._question, self._replies, self._answered)

    def _answered(self, replies: list[Reply] | None) -> None:
        if self._stopped:
            return
        self._asked_at = None
        if replies is None:
            self._line = None
            return  # ``lost`` follows
        reply = replies[0]
        seen = reply
        if self._replicated and isinstance(reply, bytes):
            seen = pulse(reply) + tuple(part for more in replies[1:] if isinstance(more, bytes) for part in acquaintances(more))
            if self._asked is not None:
                self._heard(reply, self._asked)
        news = self._silent or seen != self._seen
        self._silent, self._seen = False, seen
        if news:
            self._wake(self._key)
