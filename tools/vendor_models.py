"""Regenerate ``src/cachekeep/wire/models`` from the installed botocore: ``python tools/vendor_models.py``.

Documentation texts are dropped from every model, and EC2's is cut down to the operations listed here with the shapes they reach.
The output is reproducible: the same botocore gives the same bytes.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore
from botocore.loaders import Loader

SERVICES = ("elasticache", "cloudwatch", "kms", "iam", "sts", "sns", "ec2", "application-autoscaling", "cloudtrail")
ONLY = {
    "ec2": frozenset(
        (
            "DescribeVpcs",
            "DescribeSubnets",
            "DescribeSecurityGroups",
            "DescribeAvailabilityZones",
            "DescribeRegions",
            "DescribeInstanceTypes",
            "DescribeAccountAttributes",
            "DescribeNetworkInterfaces",
            "CreateSecurityGroup",
            "AuthorizeSecurityGroupEgress",
            "AuthorizeSecurityGroupIngress",
            "RevokeSecurityGroupEgress",
            "RevokeSecurityGroupIngress",
            "DeleteSecurityGroup",
            "DescribeSecurityGroupRules",
            "ModifySecurityGroupRules",
            "UpdateSecurityGroupRuleDescriptionsEgress",
            "UpdateSecurityGroupRuleDescriptionsIngress",
            "CreateVpc",
            "CreateSubnet",
            "DeleteSubnet",
            "DeleteVpc",
            "CreateTags",
            "DeleteTags",
            "DescribeTags",
        )
    ),
    "cloudtrail": frozenset({"LookupEvents"}),
}
PROSE = frozenset({"documentation", "documentationUrl", "deprecatedMessage"})
TARGET = Path(__file__).parents[1] / "src" / "cachekeep" / "wire" / "models"


def without_prose(node: Any, *, names: bool = False) -> Any:
    """``node`` without its documentation. ``names``: the keys are the API's own, where ``documentation`` would be a real name."""
    if isinstance(node, list):
        return [without_prose(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: without_prose(value, names=not names and key in ("members", "shapes", "operations"))
        for key, value in node.items()
        if names or key not in PROSE
    }


def references(node: Any) -> Iterator[str]:
    """The names of all shapes that ``node`` refers to."""
    if isinstance(node, list):
        for item in node:
            yield from references(item)
    elif isinstance(node, dict):
        if isinstance(node.get("shape"), str):
            yield node["shape"]
        for value in node.values():
            yield from references(value)


def reachable(model: dict[str, Any]) -> dict[str, Any]:
    wanted: set[str] = set()
    waiting = list(references(model["operations"]))
    waiting += [name for name, shape in model["shapes"].items() if shape.get("exception")]
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting.extend(references(model["shapes"][name]))
    return {name: shape for name, shape in model["shapes"].items() if name in wanted}


def vendor(service: str) -> dict[str, Any]:
    model = Loader().load_service_model(service, "service-2")
    kept = ONLY.get(service)
    operations = {name: op for name, op in model["operations"].items() if kept is None or name in kept}
    if kept and kept - operations.keys():
        raise SystemExit(f"{service} has no {sorted(kept - operations.keys())}")
    trimmed = without_prose({"metadata": model["metadata"], "operations": operations, "shapes": model["shapes"]})
    trimmed["shapes"] = reachable(trimmed)
    text = json.dumps(trimmed, separators=(",", ":"), ensure_ascii=False).encode()
    path = TARGET / service / "service-2.json.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text, 9, mtime=0))
    print(f"{service:12} {len(operations):4} operations {len(trimmed['shapes']):5} shapes {path.stat().st_size:7} bytes")
    metadata = model["metadata"]
    return {
        "signing_name": metadata.get("signingName", metadata["endpointPrefix"]),
        "api_version": metadata["apiVersion"],
        "target_prefix": metadata.get("targetPrefix"),
        "protocols": metadata["protocols"],
    }


def main() -> None:
    index = {"botocore": botocore.__version__, "services": {service: vendor(service) for service in SERVICES}}
    (TARGET / "index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    main()
