"""Service updates: a build of an engine that is newer than the one that nodes run, and what is done about it.

Source: ElastiCache User Guide, "Service updates in ElastiCache": severities with their recommended apply-by dates, statuses of
update actions. Here an update is a build that somebody installed; which nodes lack it is seen at their processes, never kept.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from cachekeep.engines.catalogue import Build, Catalogue, numbers, offer_of
from cachekeep.model import Cache, Condition, Errand, Node, NodeCondition
from cachekeep.model.updates import ServiceUpdate, Severity, UpdateAsked
from cachekeep.services.core import paging
from cachekeep.services.core.caches import every, save, told
from cachekeep.services.core.callers import is_root
from cachekeep.services.core.context import Context, Params, value_error
from cachekeep.services.core.errands import with_errand
from cachekeep.services.core.operation import Operation, reads, writes
from cachekeep.services.core.paging import PageRule
from cachekeep.services.elasticache.status import cache_status, group_status
from cachekeep.store.contract import Transaction
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call

APPLY_BY_DAYS: Final[Mapping[Severity, int]] = {"critical": 14, "important": 30, "medium": 60, "low": 90}
_MINUTES_PER_NODE: Final = "1 minute per node"
_PAGES: Final = PageRule(least=1, most=50, default=50)
_STATUSES: Final = frozenset({"available", "cancelled", "expired"})


def severity(old: Iterable[Build], new: Build) -> tuple[Severity, tuple[str, ...]]:
    """How much it matters, and the holes that it closes."""
    cured = {hole.id: hole for build in old for hole in build.holes if hole.id not in {other.id for other in new.holes}}
    if any(hole.grave for hole in cured.values()):
        return "critical", tuple(sorted(cured))
    return ("important" if cured else "medium"), tuple(sorted(cured))


def newer(catalogue: Catalogue, cache: Cache, node: Node, told: NodeCondition | None) -> tuple[Build, Build] | None:
    """The build that a node runs and the one that it would start with now, if that is newer. None also where nobody knows."""
    running = next((build for build in catalogue.builds if told is not None and build.program == told.program), None)
    version = running.version if running is not None else _version_of(told.program if told is not None else "", node.engine)
    needs = ("tls",) if cache.decided.certificate is not None else ()
    best = catalogue.serving(offer_of(node.engine, node.version), needs)
    if version is None or best is None or numbers(version) >= best.numbers:
        return None
    return running or replace(best, version=version), best


def _version_of(program: str, engine: str) -> str | None:
    """Of a build that is not installed any more."""
    name, _, rest = program.partition("-")
    return rest.removesuffix("+tls") if name == engine and rest else None


def name_of(engine: str, build: Build) -> str:
    return f"{engine}-{build.version.replace('.', '-')}"


async def nodes_of(tx: Transaction, cache: Cache) -> list[tuple[Node, NodeCondition | None]]:
    """The nodes of a cache, each with what its keeper says of it."""
    condition = await tx.condition(cache.uid)
    said = {each.name: each for each in condition.nodes} if condition is not None else {}
    return [(node, said.get(node.name)) for node in cache.decided.nodes if not node.leaving]


def status_of(update: ServiceUpdate, others: Iterable[ServiceUpdate], catalogue: Catalogue) -> str:
    """Available, cancelled (its build is gone from here) or expired (there is a newer one)."""
    if any(o.engine == update.engine and o.line == update.line and numbers(o.build) > numbers(update.build) for o in others):
        return "expired"
    return "available" if any(build.program == update.program for build in catalogue.builds) else "cancelled"


def apply_by(update: ServiceUpdate) -> dt.datetime:
    return update.released_at + dt.timedelta(days=APPLY_BY_DAYS[update.severity])


async def describe(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Newer builds of what runs here, installed since."""
    updates = await tx.list(ServiceUpdate)
    name, statuses = call.params.get("ServiceUpdateName"), _statuses(call.params)
    if name is not None:
        _named(updates, name)
    rows = [(u, status_of(u, updates, context.catalogue)) for u in updates if name in (None, u.name)]
    rows = [row for row in rows if not statuses or row[1] in statuses]
    return paging.page(rows, call.params, lambda row: row[0].name, lambda row: _shown(*row), "ServiceUpdates", _PAGES)


def _statuses(params: Params) -> frozenset[str]:
    asked = frozenset(params.get("ServiceUpdateStatus", ()))
    if not asked <= _STATUSES:
        raise value_error(f"Invalid ServiceUpdateStatus: valid values are {', '.join(sorted(_STATUSES))}.")
    return asked


def _named(updates: Iterable[ServiceUpdate], name: str) -> ServiceUpdate:
    """Raises ApiError ServiceUpdateNotFoundFault."""
    found = next((update for update in updates if update.name == name), None)
    if found is None:
        raise ApiError("ServiceUpdateNotFoundFault", f"Service update {name} not found.")
    return found


def _shown(update: ServiceUpdate, status: str) -> Mapping[str, Any]:
    closes = f"; it closes {', '.join(update.cures)}" if update.cures else ""
    return {
        "ServiceUpdateName": update.name,
        "ServiceUpdateReleaseDate": update.released_at,
        "ServiceUpdateSeverity": update.severity,
        "ServiceUpdateRecommendedApplyByDate": apply_by(update),
        "ServiceUpdateStatus": status,
        "ServiceUpdateDescription": f"{update.engine} {update.build} serves {update.line}{closes}.",
        "ServiceUpdateType": "security-update",
        "Engine": update.engine,
        "EngineVersion": update.line,
        "AutoUpdateAfterRecommendedApplyByDate": False,
        "EstimatedUpdateTime": _MINUTES_PER_NODE,
    }


# ------------------------------------------------------------------ update actions


class Action:
    """One update for one cache, as it is now."""

    def __init__(self, update: ServiceUpdate, cache: Cache, nodes: Sequence[tuple[Node, NodeCondition | None]]) -> None:
        self.update, self.cache, self.nodes = update, cache, nodes
        self.asked = update.asked.get(cache.uid)

    def lacks(self, node: Node, said: NodeCondition | None) -> bool:
        version = _version_of(said.program, node.engine) if said is not None else None
        return version is None or numbers(version) < numbers(self.update.build)

    @property
    def updated(self) -> int:
        if not self.known:
            return self.asked.updated if self.asked is not None else 0
        return sum(not self.lacks(*each) for each in self.nodes)

    @property
    def known(self) -> bool:
        """Whether its keeper has said what each node runs."""
        return all(said is not None and said.program for _, said in self.nodes)

    def under_way(self) -> bool:
        running = any(e.kind == "patch" for e in self.cache.errands_left) or any(
            isinstance(job.work, Errand) and job.work.kind == "patch" and not job.ended for job in self.cache.decided.jobs
        )
        return running and self.updated < len(self.nodes)

    @property
    def status(self) -> str:
        """[UpdateActionStatus]"""
        if self.updated == len(self.nodes):
            return "complete"
        if self.under_way():
            stopping = any(e.kind == "stop-patch" for e in self.cache.errands_left)
            began = self.updated or any(node.due or node.condemned for node, _ in self.nodes)
            return "stopping" if stopping else "in-progress" if began else "waiting-to-start"
        return "stopped" if self.asked is not None and self.asked.stopped else "not-applied"

    def node_status(self, node: Node, said: NodeCondition | None) -> str:
        """[NodeUpdateStatus]"""
        if not self.lacks(node, said):
            return "complete"
        if not self.under_way():
            return "stopped" if self.asked is not None and self.asked.stopped else "not-applied"
        return "in-progress" if node.condemned or not node.announced else "waiting-to-start"

    def sla(self, now: dt.datetime) -> str:
        done_at = self.asked.done_at if self.asked is not None else None
        if done_at is not None:
            return "yes" if done_at <= apply_by(self.update) else "no"
        return "n/a" if now <= apply_by(self.update) or self.status == "complete" else "no"


async def actions(tx: Transaction, update: ServiceUpdate) -> AsyncIterator[Action]:
    """The caches that an update is for."""
    async for cache in every(tx, lambda cache: not cache.wanted.deleted):
        nodes = await nodes_of(tx, cache)
        if nodes and all((node.engine, node.version) == (update.engine, update.line) for node, _ in nodes):
            action = Action(update, cache, nodes)
            # Between a request and its keeper's next word nobody knows what runs.
            if action.asked is not None or (action.known and action.updated < len(nodes)):
                yield action


async def describe_actions(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Which caches lack which update, and how far it is."""
    params, updates = call.params, await tx.list(ServiceUpdate)
    if name := params.get("ServiceUpdateName"):  # the model declares no error for one that is not there
        updates = [update for update in updates if update.name == name]
    statuses, span = _statuses(params), params.get("ServiceUpdateTimeRange", {})
    everything = await tx.list(ServiceUpdate)
    found: dict[str, Mapping[str, Any]] = {}
    for update in updates:
        status = status_of(update, everything, context.catalogue)
        if (statuses and status not in statuses) or params.get("Engine", update.engine).lower() != update.engine:
            continue
        if not span.get("StartTime", update.released_at) <= update.released_at <= span.get("EndTime", update.released_at):
            continue
        async for action in actions(tx, update):
            if _is_asked_for(action, params):
                found[f"{action.cache.name}|{update.name}"] = _action(action, status, params, context.clock.now())
    return paging.page(found.items(), params, lambda row: row[0], lambda row: row[1], "UpdateActions", _PAGES)


def _is_asked_for(action: Action, params: Params) -> bool:
    groups, clusters = params.get("ReplicationGroupIds"), params.get("CacheClusterIds")
    if groups or clusters:
        ids = {each.lower() for each in (groups if action.cache.kind == "group" else clusters) or ()}
        if action.cache.name not in ids:
            return False
    wanted = params.get("UpdateActionStatus")
    return not wanted or action.status in wanted


def _action(action: Action, status: str, params: Params, now: dt.datetime) -> Mapping[str, Any]:
    update, asked = action.update, action.asked
    modified = (asked.done_at or asked.at) if asked is not None else update.released_at
    shape: dict[str, Any] = {
        **_id_of(action.cache),
        "ServiceUpdateName": update.name,
        "ServiceUpdateReleaseDate": update.released_at,
        "ServiceUpdateSeverity": update.severity,
        "ServiceUpdateStatus": status,
        "ServiceUpdateRecommendedApplyByDate": apply_by(update),
        "ServiceUpdateType": "security-update",
        "UpdateActionAvailableDate": max(update.released_at, action.cache.decided.available_at or update.released_at),
        "UpdateActionStatus": action.status,
        "NodesUpdated": f"{action.updated}/{len(action.nodes)}",
        "UpdateActionStatusModifiedDate": modified,
        "SlaMet": action.sla(now),
        "EstimatedUpdateTime": _MINUTES_PER_NODE,
        "Engine": update.engine,
    }
    if params.get("ShowNodeLevelUpdateStatus"):
        shape |= _node_level(action)
    return shape


def _id_of(cache: Cache) -> Mapping[str, str]:
    return {"ReplicationGroupId" if cache.kind == "group" else "CacheClusterId": cache.name}


def _node_level(action: Action) -> Mapping[str, Any]:
    def shown(node: Node, said: NodeCondition | None) -> dict[str, Any]:
        shape: dict[str, Any] = {"CacheNodeId": node.member.rpartition(".")[2] if "." in node.member else "0001"}
        shape["NodeUpdateStatus"] = action.node_status(node, said)
        if action.asked is not None:
            shape |= {"NodeUpdateInitiatedBy": action.asked.by, "NodeUpdateInitiatedDate": action.asked.at}
        return shape

    if action.cache.kind == "cluster":
        return {"CacheNodeUpdateStatus": [shown(*each) for each in action.nodes]}
    shards = dict.fromkeys(node.shard for node, _ in action.nodes)
    return {
        "NodeGroupUpdateStatus": [
            {
                "NodeGroupId": shard,
                "NodeGroupMemberUpdateStatus": [
                    {"CacheClusterId": node.member, **shown(node, said)} for node, said in action.nodes if node.shard == shard
                ],
            }
            for shard in shards
        ]
    }


# ------------------------------------------------------------------ applied and stopped


async def apply(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """Caches are brought to the newer build: replicas first, one at a time, then the lead moves, then the old primary."""
    update = _named(await tx.list(ServiceUpdate), call.params["ServiceUpdateName"])
    by: Any = "system" if is_root(call) and call.source_ip is None else "customer"
    return await _each(call, tx, context, update, by)


async def stop(call: Call, tx: Transaction, context: Context) -> Mapping[str, Any]:
    """No other node of these caches is restarted for it. Nodes that were stay updated."""
    update = _named(await tx.list(ServiceUpdate), call.params["ServiceUpdateName"])
    return await _each(call, tx, context, update, None)


async def _each(call: Call, tx: Transaction, context: Context, update: ServiceUpdate, by: Any) -> Mapping[str, Any]:
    """``by``: who has it applied; None: it is stopped."""
    there: dict[tuple[str, str], Action] = {(action.cache.kind, action.cache.name): action async for action in actions(tx, update)}
    done: list[Mapping[str, Any]] = []
    undone: list[Mapping[str, Any]] = []
    asked = dict(update.asked)
    wishes = [("group", "ReplicationGroupId", name.lower()) for name in call.params.get("ReplicationGroupIds", ())]
    wishes += [("cluster", "CacheClusterId", name.lower()) for name in call.params.get("CacheClusterIds", ())]
    if not wishes:
        raise value_error("ReplicationGroupIds, CacheClusterIds or both must name what is meant.")
    for kind, label, name in dict.fromkeys(wishes):
        action = there.get((kind, name))
        why_not = await _why_not(tx, context, action, update, stops=by is None)
        if action is None or why_not:
            undone.append({label: name, "ServiceUpdateName": update.name, **_refusal(why_not)})
            continue
        cache, now = action.cache, context.clock.now()
        if by is None:
            errands = with_errand(cache, "stop-patch")
            event = told(cache, f"The update {update.name} is stopped.")
            asked[cache.uid] = replace(asked[cache.uid], stopped=True)
        else:
            members = tuple(node.member for node, said in action.nodes if action.lacks(node, said))
            errands = with_errand(cache, "patch", nodes=members)
            event = told(cache, f"The update {update.name} is being applied.")
            asked[cache.uid] = UpdateAsked(at=now, by=by, updated=action.updated)
        await save(tx, cache, replace(cache.wanted, errands=errands), event)
        status = "stopping" if by is None else "waiting-to-start"
        done.append({label: name, "ServiceUpdateName": update.name, "UpdateActionStatus": status})
    if asked != update.asked:
        await tx.put(replace(update, asked=asked))
    return {"ProcessedUpdateActions": done, "UnprocessedUpdateActions": undone}


def _refusal(why_not: str) -> Mapping[str, str]:
    return {"ErrorType": "InvalidParameterValue", "ErrorMessage": why_not}


async def _why_not(tx: Transaction, context: Context, action: Action | None, update: ServiceUpdate, *, stops: bool) -> str:
    """Why nothing is done about it; empty: something is."""
    if action is None or action.status == "complete":
        return "There is no such cache that this service update is for, or it is up to date."
    if stops:
        return "" if action.under_way() and action.asked is not None else "The update is not being applied."
    if action.under_way():
        return "The update is being applied already."
    if status_of(update, await tx.list(ServiceUpdate), context.catalogue) != "available":
        return "The service update is not available any more."
    condition: Condition | None = await tx.condition(action.cache.uid)
    status = group_status(action.cache, condition) if action.cache.kind == "group" else cache_status(action.cache, condition)
    return "" if status == "available" else f"The cache is not in available state: it is {status}."


OPERATIONS: Final[Mapping[str, Operation]] = {
    "DescribeServiceUpdates": reads(describe),
    "DescribeUpdateActions": reads(describe_actions),
    "BatchApplyUpdateAction": writes(apply),
    "BatchStopUpdateAction": writes(stop),
}
