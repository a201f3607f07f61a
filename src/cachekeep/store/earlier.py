"""What was decided in earlier forms, as it is told now: of rows of the store by migrations, of what the journal keeps when it is
read. On plain JSON, since the nouns of then are no more; what has the new form already stays as it is."""

from __future__ import annotations

from typing import Any

UNKNOWN = {"boot": "", "seconds": 0.0}
"""A moment of which nobody knows when it was."""
Json = dict[str, Any]


def one_change_at_a_time(decided: Json) -> None:
    """Flags of shards and nodes become the one value that they stood for together (revision 0004)."""
    successors = {node["name"] for node in decided.get("successors", ())}
    for shard in decided.get("shards", ()):
        if "change" not in shard:
            if "in_sync" in shard:
                shard["lead_order"] = _lead_order(shard)
                shard["confirmed"] = _once(shard.get("primary"), shard.pop("in_sync"))
            shard["change"] = _change(shard, successors)
    if "fed" in decided:
        shard = next(iter(decided.get("shards", ())), Json())
        decided["confirmed"] = _once(shard.get("primary"), decided.pop("fed"))
    for node in (*decided.get("nodes", ()), *decided.get("retired", ())):
        if "fate" not in node:
            node["fate"] = _fate(node)
    for node in decided.get("successors", ()):
        if "fate" not in node:
            since = node.pop("condemned_at", None)
            node["fate"] = {"type": "spoilt", "since": since} if since else None


def a_mode_and_a_switch(decided: Json) -> None:
    """The mode is said, and what belongs to a switch, to slots on their way, or to who led before is together (revision 0006)."""
    if "mode" in decided:
        return
    # In cluster mode, and only there, all slots are to belong to somebody.
    clustered = any(shard.get("slots") for shard in decided.get("shards", ()))
    decided["mode"] = ("enabled" if clustered else "disabled") if decided.get("nodes") else None
    decided["switch"] = _switch(decided)
    for shard in decided.get("shards", ()):
        before, since = shard.pop("led_before", None), shard.pop("led_since", None) or UNKNOWN
        shard["predecessor"] = {"name": before, "since": since} if before else None
    slots, since = decided.pop("resharding", 0), decided.pop("resharded_at", None)
    done = {"type": "resharded", "since": since} if since else None
    decided["reshard"] = {"type": "resharding", "slots": slots} if slots else done


def _switch(decided: Json) -> Json | None:
    names = ("successors", "retired", "other_databases", "confirmed")
    successors, retired, other_databases, confirmed = (decided.pop(name, None) for name in names)
    tried_at = next((x.pop("ordered_at", None) for x in decided.get("shards", ())), None)
    if retired:
        return {"type": "retiring", "nodes": retired, "since": tried_at or UNKNOWN}
    if not successors and not other_databases:
        return None
    found = {"successors": successors or [], "other_databases": other_databases or [], "tried_at": tried_at}
    return {"type": "preparing", **found, **({"confirmed": confirmed} if confirmed else {})}


def a_job_for_each_errand(decided: Json, asked: list[Json] | None) -> None:
    """One number said which errands had been taken up: each of those has a job now, and counts as done, since nobody wrote down how
    far it was, and what it had decided goes on (revision 0005). ``asked`` are those that the row lists. None: the journal does not
    say of what kind they were, and nobody asks; but they must not be taken up again."""
    taken_up = decided.pop("errands_done", 0)
    if "jobs" in decided:
        return
    known = [{"serial": serial, "kind": "reboot"} for serial in range(1, taken_up + 1)] if asked is None else asked
    decided["jobs"] = [
        {
            "id": f"errand-{errand['serial']}",
            "work": {"type": "errand", **errand},
            "began_at": UNKNOWN,
            "deadline_seconds": 0.0,
            "state": {"type": "done"},
        }
        for errand in known
        if errand["serial"] <= taken_up
    ]


def _lead_order(shard: Json) -> int:
    """By which its primary leads: by the last one, but for that of a move that is under way."""
    order: int = shard.get("order", 0)
    return max(order - 1, 1) if shard.get("moving_to") else order


def _once(primary: str | None, nodes: list[str]) -> Json:
    """They were in sync once, nobody knows with which lead: with none that there is, so nobody is promoted for it, but whoever may
    hold what was acknowledged is waited for, and is not told to follow a primary that is empty."""
    return {"primary": primary, "order": 0, "nodes": nodes, "at": None}


def _change(shard: Json, successors: set[str]) -> Json | None:
    to, lost = shard.pop("moving_to", None), shard.pop("recovering_from", None)
    seize, starving, starved_since = (shard.pop(name, None) for name in ("seize", "starving", "starved_since"))
    since = shard.get("ordered_at") or UNKNOWN
    if starving:  # which goes before what was planned
        return {"type": "starving", "since": starved_since}
    if to in successors:
        return {"type": "conversion", "to": to, "since": since, "lost": lost}
    if to and lost:
        return {"type": "election", "to": to, "lost": lost, "since": since, "seize": bool(seize)}
    if to:
        return {"type": "move", "to": to}
    return {"type": "recovery", "lost": lost} if lost else None


def _fate(node: Json) -> Json | None:
    condemned, since, starved = (node.pop(name, None) for name in ("condemned", "condemned_at", "starved"))
    if starved:
        return {"type": "starved"}
    if not condemned:
        return None
    return {"type": "condemned", "since": since} if since else {"type": "halted"}
