"""``python -m cachekeep.sim --seeds 20000``: many seeds, on every processor; failing ones are named, and kept in a file."""

from __future__ import annotations

import argparse
import functools
import logging
import multiprocessing
import os
import sys
import time
from pathlib import Path

from cachekeep.sim.cluster_run import cluster_scenario, simulate_cluster
from cachekeep.sim.faults import beside, vocabulary
from cachekeep.sim.run import simulate
from cachekeep.sim.scenario import Report, Scenario, Violation
from cachekeep.sim.switch_run import simulate_switch, switch_scenario
from cachekeep.sim.trouble_run import simulate_trouble, trouble_scenario


def scenario(seed: int) -> Scenario:
    """What a seed stands for: every fifth has planned moves only, every seventh no automatic failover, every
    thirteenth hosts where nothing can be stopped once they are cut off."""
    return Scenario(
        seed,
        faults=seed % 5 != 0,
        nodes=2 + seed % 4,
        automatic_failover=seed % 7 != 0,
        fence="starve" if seed % 13 == 3 else "confirm",
        vocabulary=vocabulary(seed),
        two_keepers=beside(seed),
    )


def _one(seed: int, kind: str) -> Report | str:
    try:
        match kind:
            case "cluster":
                return simulate_cluster(cluster_scenario(seed))
            case "trouble":
                return simulate_trouble(trouble_scenario(seed))
            case "switch":
                return simulate_switch(switch_scenario(seed))
        return simulate(scenario(seed))
    except Violation as broken:
        return f"{type(broken).__name__}: {broken}"
    except Exception as error:  # a crash of the simulation itself is a finding too
        return f"seed {seed}: {type(error).__name__}: {error}"


def main() -> int:
    """Run seeds; exit code 1 if one of them broke a promise."""
    parser = argparse.ArgumentParser(prog="python -m cachekeep.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=300, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, default=None, help="file to which failing seeds are added")
    parser.add_argument(
        "--cluster", dest="kind", action="store_const", const="cluster", default="", help="cluster mode: shards and slots"
    )
    parser.add_argument("--switch", dest="kind", action="store_const", const="switch", help="from compatible to cluster mode")
    parser.add_argument(
        "--trouble", dest="kind", action="store_const", const="trouble", help="one node or front that goes on giving trouble"
    )
    asked = parser.parse_args()
    logging.getLogger("cachekeep").setLevel(logging.CRITICAL)
    began = time.monotonic()
    broken: list[str] = []
    written = lost = failovers = 0
    with multiprocessing.Pool(asked.jobs) as pool:
        for result in pool.imap_unordered(
            functools.partial(_one, kind=asked.kind), range(asked.first, asked.first + asked.seeds), chunksize=8
        ):
            if isinstance(result, str):
                broken.append(result)
                print(result[:2000], flush=True)
                if asked.keep:
                    with asked.keep.open("a") as file:
                        file.write(result[:200] + "\n")
            else:
                written, lost, failovers = written + result.acknowledged, lost + result.lost, failovers + result.failovers
    print(
        f"{asked.seeds} seeds in {time.monotonic() - began:.0f} s: {len(broken)} broke a promise; {failovers} changes of primary, "
        f"{written} writes acknowledged, {lost} lost that no in-sync node held"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
