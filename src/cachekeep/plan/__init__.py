"""The mind: pure functions from a cache and a view of it to the next step, each step with its sentence."""

from cachekeep.plan.planner import plan
from cachekeep.plan.situation import Policy
from cachekeep.plan.status import condition

__all__ = ["Policy", "condition", "plan"]
