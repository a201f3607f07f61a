"""CloudWatch by an unmodified boto3, in each of its protocols."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from tests.metrics.archives import archive_in
from tests.services.rig import ROOT_KEY, Rig, refused

from cachekeep.metrics import queries
from cachekeep.metrics.datum import single
from cachekeep.metrics.series import DAY, HOUR, Teller
from cachekeep.services.cloudwatch import put, read
from cachekeep.services.core.paging import wrap

NODES = [
    Teller("AWS/ElastiCache", (("CacheClusterId", name), ("CacheNodeId", node))) for name, node in (("mc", "0001"), ("mc", "0002"))
]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    archive = archive_in(tmp_path)
    rig = Rig(archive=archive)
    rig.run(archive.open())
    yield rig
    rig.run(archive.aclose())
    rig.close()


@pytest.fixture
def watch(rig: Rig) -> Any:
    return rig.client("cloudwatch")


def now(rig: Rig) -> int:
    at = int(rig.clock.now().timestamp())
    return at - at % HOUR


def moment(seconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def tell(rig: Rig, source: Teller, metric: str, values: dict[int, float], unit: str = "Count") -> None:
    rig.run(rig.services._context.archive.write([(source, at, {(metric, unit): single(value)}) for at, value in values.items()]))


def statistics(watch: Any, rig: Rig, *, metric: str = "Hits", minutes: int = 60, **more: Any) -> list[dict[str, Any]]:
    asked = {"Namespace": "Own", "MetricName": metric, "Period": 60, "Statistics": ["Sum"], "Dimensions": []} | more
    asked = {key: value for key, value in asked.items() if value is not None}
    asked = {"StartTime": moment(now(rig)), "EndTime": moment(now(rig) + minutes * 60)} | asked
    return sorted(watch.get_metric_statistics(**asked)["Datapoints"], key=lambda point: point["Timestamp"])


def data(watch: Any, rig: Rig, *queries: dict[str, Any], **more: Any) -> Any:
    asked = {"StartTime": moment(now(rig)), "EndTime": moment(now(rig) + HOUR), "ScanBy": "TimestampAscending"} | more
    return watch.get_metric_data(MetricDataQueries=list(queries), **asked)


def metric(
    id: str, name: str = "Hits", *, stat: str = "Sum", period: int = 60, dimensions: tuple[tuple[str, str], ...] = (), **more: Any
) -> dict[str, Any]:
    namespace = "AWS/ElastiCache" if dimensions else "Own"
    shape = {"Namespace": namespace, "MetricName": name, "Dimensions": [{"Name": n, "Value": v} for n, v in dimensions]}
    return {"Id": id, "MetricStat": {"Metric": shape, "Period": period, "Stat": stat}, **more}


# ------------------------------------------------------------------ a node's metrics


def test_a_metric_of_a_node_is_known_by_cluster_and_node_and_by_its_cluster(rig: Rig, watch: Any) -> None:
    for number, node in enumerate(NODES, 1):
        tell(rig, node, "GetHits", {now(rig): 10.0 * number})
        tell(rig, node, "MajorPageFaults", {now(rig): 1.0})
    found = watch.list_metrics(Namespace="AWS/ElastiCache", MetricName="GetHits")["Metrics"]
    assert sorted(len(m["Dimensions"]) for m in found) == [1, 2, 2]
    assert len(watch.list_metrics(Namespace="AWS/ElastiCache", MetricName="MajorPageFaults")["Metrics"]) == 2
    by_node = statistics(
        watch,
        rig,
        metric="GetHits",
        Namespace="AWS/ElastiCache",
        Dimensions=[{"Name": n, "Value": v} for n, v in NODES[1].dimensions],
    )
    assert [(point["Sum"], point["Unit"]) for point in by_node] == [(20.0, "Count")]
    everything = ["SampleCount", "Average", "Sum", "Minimum", "Maximum"]
    (whole,) = statistics(
        watch,
        rig,
        metric="GetHits",
        Namespace="AWS/ElastiCache",
        Dimensions=[{"Name": "CacheClusterId", "Value": "mc"}],
        Statistics=everything,
    )
    assert [whole[name] for name in everything] == [2, 15, 30, 10, 20]


def test_listing(rig: Rig, watch: Any) -> None:
    for number in range(1203):
        tell(rig, Teller("Own", (("N", f"{number:04}"),)), "Hits", {now(rig): 1.0})
    tell(rig, Teller("Own", ()), "Old", {now(rig) - 5 * HOUR: 1.0})
    pages = watch.get_paginator("list_metrics").paginate(Namespace="Own")
    sizes, seen = [], []
    for page in pages:
        sizes.append(len(page["Metrics"]))
        seen += [m["Dimensions"][0]["Value"] for m in page["Metrics"] if m["Dimensions"]]
    assert sizes == [500, 500, 204]
    assert seen == [f"{number:04}" for number in range(1203)]
    assert len(watch.list_metrics(Dimensions=[{"Name": "N", "Value": "0007"}])["Metrics"]) == 1
    assert len(watch.list_metrics(Dimensions=[{"Name": "N"}])["Metrics"]) == 500
    assert watch.list_metrics(MetricName="Old")["Metrics"]
    assert not watch.list_metrics(MetricName="Old", RecentlyActive="PT3H")["Metrics"]
    rig.clock.passed += dt.timedelta(days=15)
    assert not watch.list_metrics()["Metrics"]
    assert refused(watch.list_metrics, NextToken="x").code == "InvalidParameterValue"


# ------------------------------------------------------------------ one's own


def test_every_way_to_tell_a_value(rig: Rig, watch: Any) -> None:
    at = moment(now(rig) + 90)
    told: list[dict[str, Any]] = [
        {"Value": 3.0},
        {"Values": [1.0, 2.0], "Counts": [2.0, 4.0]},
        {"StatisticValues": {"SampleCount": 2.0, "Sum": 10.0, "Minimum": 5.0, "Maximum": 5.0}},
    ]
    watch.put_metric_data(
        Namespace="Own", MetricData=[{"MetricName": "Hits", "Timestamp": at, "Unit": "Count"} | each for each in told]
    )
    (point,) = statistics(watch, rig, Statistics=["SampleCount", "Sum", "Minimum", "Maximum", "Average"])
    assert point["Timestamp"] == moment(now(rig) + 60)
    assert (point["SampleCount"], point["Sum"], point["Minimum"], point["Maximum"], point["Unit"]) == (9, 23, 1, 5, "Count")
    (extended,) = statistics(watch, rig, Statistics=None, ExtendedStatistics=["p50", "p100", "tm50", "PR(1:3)"])
    assert extended["ExtendedStatistics"] == {
        "p50": 2,
        "p100": 5,
        "tm50": pytest.approx((2 + 5) / 4.5),
        "PR(1:3)": pytest.approx(500 / 9),
    }
    assert statistics(watch, rig, Unit="Bytes") == []


@pytest.mark.parametrize(
    ("datum", "code"),
    [
        ({}, "MissingParameter"),
        ({"Value": 1.0, "Values": [1.0]}, "InvalidParameterCombination"),
        ({"Value": float("nan")}, "InvalidParameterValue"),
        ({"Value": float("inf")}, "InvalidParameterValue"),
        ({"Value": 2.0**361}, "InvalidParameterValue"),
        ({"Values": [1.0] * 151}, "InvalidParameterValue"),
        ({"Values": [1.0], "Counts": [1.0, 2.0]}, "InvalidParameterValue"),
        ({"Values": [1.0], "Counts": [-1.0]}, "InvalidParameterValue"),
        ({"Value": 1.0, "Counts": [1.0]}, "InvalidParameterCombination"),
        ({"StatisticValues": {"SampleCount": 0.0, "Sum": 0.0, "Minimum": 0.0, "Maximum": 0.0}}, "InvalidParameterValue"),
        ({"StatisticValues": {"SampleCount": 1.0, "Sum": 0.0, "Minimum": 2.0, "Maximum": 1.0}}, "InvalidParameterValue"),
        ({"Value": 1.0, "StorageResolution": 1}, "InvalidParameterCombination"),
        ({"Value": 1.0, "Dimensions": [{"Name": "a", "Value": "1"}, {"Name": "a", "Value": "2"}]}, "InvalidParameterValue"),
        ({"Value": 1.0, "Timestamp": dt.datetime(2001, 1, 1, tzinfo=dt.UTC)}, "InvalidParameterValue"),
    ],
)
def test_what_is_no_datum_is_refused_and_nothing_kept(rig: Rig, watch: Any, datum: dict[str, Any], code: str) -> None:
    good = {"MetricName": "Good", "Value": 1.0}
    found = refused(watch.put_metric_data, Namespace="Own", MetricData=[good, {"MetricName": "Hits"} | datum])
    assert found.code in (code, f"{code}Exception", f"{code}Value")
    assert not watch.list_metrics()["Metrics"]


def test_services_namespaces_are_theirs(watch: Any) -> None:
    found = refused(watch.put_metric_data, Namespace="AWS/ElastiCache", MetricData=[{"MetricName": "Hits", "Value": 1.0}])
    assert found.code == "InvalidParameterValue"


def test_a_thousand_values_come_compressed(rig: Rig, watch: Any) -> None:
    """botocore gzips what is larger than 10 KiB, unasked."""
    at = moment(now(rig))
    watch.put_metric_data(
        Namespace="Own", MetricData=[{"MetricName": f"M{n:03}", "Value": float(n), "Timestamp": at} for n in range(1000)]
    )
    assert statistics(watch, rig, metric="M999")[0]["Sum"] == 999
    many = [{"MetricName": "M", "Value": 1.0}] * 1001
    assert refused(watch.put_metric_data, Namespace="Own", MetricData=many).code == "InvalidParameterValue"


def test_what_takes_long_is_not_done_on_the_thread_of_keepers(rig: Rig, watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def noted(work: Any) -> Any:
        def done(*given: Any, **more: Any) -> Any:
            threads.append(threading.get_ident())
            return work(*given, **more)

        return done

    async def here() -> int:
        return threading.get_ident()

    monkeypatch.setattr(put, "_datum", noted(put._datum))
    monkeypatch.setattr(read, "_result", noted(read._result))
    monkeypatch.setattr(queries, "evaluate", noted(queries.evaluate))
    monkeypatch.setattr(queries, "dimensions_seen", noted(queries.dimensions_seen))
    watch.put_metric_data(Namespace="Own", MetricData=[{"MetricName": "Hits", "Value": 1.0, "Timestamp": moment(now(rig))}])
    data(watch, rig, {"Id": "e", "Expression": "SEARCH('Hits', 'Sum', 60) + 1"})
    assert len(threads) == 4
    assert rig.run(here()) not in threads


# ------------------------------------------------------------------ statistics


def test_periods_are_counted_from_the_start(rig: Rig, watch: Any) -> None:
    tell(rig, Teller("Own", ()), "Hits", {now(rig) + minute * 60: 1.0 for minute in range(60)})
    points = statistics(watch, rig, StartTime=moment(now(rig) + 125), Period=300)
    assert [(int(p["Timestamp"].timestamp()) - now(rig), p["Sum"]) for p in points[:2]] == [(120, 5.0), (420, 5.0)]
    assert sum(p["Sum"] for p in points) == 58


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"Period": 30}, "InvalidParameterValue"),
        ({"Statistics": None}, "InvalidParameterCombination"),
        ({"ExtendedStatistics": ["p9"]}, "InvalidParameterCombination"),
        ({"Statistics": None, "ExtendedStatistics": ["p101"]}, "InvalidParameterValue"),
        ({"EndTime": dt.datetime(2020, 1, 1, tzinfo=dt.UTC)}, "InvalidParameterValue"),
        ({"minutes": 1441}, "InvalidParameterCombination"),
    ],
)
def test_what_cannot_be_asked(rig: Rig, watch: Any, asked: dict[str, Any], code: str) -> None:
    assert refused(lambda **params: statistics(watch, rig, **params), **asked).code == code


def test_what_is_old_is_there_by_longer_periods(rig: Rig, watch: Any) -> None:
    day = now(rig) - now(rig) % DAY - 20 * DAY
    tell(rig, Teller("Own", ()), "Hits", {day + minute * 60: 1.0 for minute in range(60)})
    archive = rig.services._context.archive
    while rig.run(archive.fold(now(rig))):
        pass
    points = statistics(watch, rig, StartTime=moment(day), EndTime=moment(day + HOUR), Period=300)
    assert [p["Sum"] for p in points] == [5.0] * 12
    assert (
        refused(lambda **p: statistics(watch, rig, **p), StartTime=moment(day), EndTime=moment(day + HOUR), Period=60).code
        == "InvalidParameterValue"
    )


# ------------------------------------------------------------------ data and math


def test_data_and_math(rig: Rig, watch: Any) -> None:
    for number, node in enumerate(NODES, 1):
        tell(rig, node, "GetHits", {now(rig) + minute * 60: float(minute * number) for minute in range(3)})
    found = data(
        watch,
        rig,
        {"Id": "rate", "Expression": "100 * m1 / (m1 + m2)", "Label": "share of ${LABEL}"},
        metric("m1", "GetHits", dimensions=NODES[0].dimensions, ReturnData=False),
        metric("m2", "GetHits", dimensions=NODES[1].dimensions, Label="${PROP('Dim.CacheNodeId')} at most ${MAX}"),
        {"Id": "all", "Expression": "SEARCH('{AWS/ElastiCache,CacheClusterId,CacheNodeId} MetricName=\"GetHits\"', 'Sum', 60)"},
        {"Id": "total", "Expression": "SUM(all)"},
        {"Id": "most", "Expression": "MAX(m2)", "Period": 1200},
    )
    told = [(r["Id"], r["Label"], r["Values"], r["StatusCode"]) for r in found["MetricDataResults"]]
    assert told == [
        ("rate", "share of rate", [pytest.approx(100 / 3)] * 2, "Complete"),
        ("m2", "0002 at most 4", [0, 2, 4], "Complete"),
        ("all", "GetHits mc 0001", [0, 1, 2], "Complete"),
        ("all", "GetHits mc 0002", [0, 2, 4], "Complete"),
        ("total", "total", [0, 3, 6], "Complete"),
        ("most", "most", [4, 4, 4], "Complete"),
    ]
    newest = data(watch, rig, metric("m2", "GetHits", dimensions=NODES[1].dimensions), ScanBy="TimestampDescending")
    assert newest["MetricDataResults"][0]["Values"] == [4, 2, 0]


def test_data_come_in_pages(rig: Rig, watch: Any) -> None:
    for name in ("A", "B"):
        tell(rig, Teller("Own", ()), name, {now(rig) + minute * 60: float(minute) for minute in range(10)})
    pages = watch.get_paginator("get_metric_data").paginate(
        MetricDataQueries=[metric("a", "A"), metric("b", "B")],
        StartTime=moment(now(rig)),
        EndTime=moment(now(rig) + HOUR),
        ScanBy="TimestampAscending",
        MaxDatapoints=7,
    )
    values: dict[str, list[float]] = {}
    count = 0
    for page in pages:
        count += 1
        assert sum(len(r["Values"]) for r in page["MetricDataResults"]) <= 7
        for result in page["MetricDataResults"]:
            values.setdefault(result["Id"], []).extend(result["Values"])
    assert count == 3
    assert values == {"a": [float(n) for n in range(10)], "b": [float(n) for n in range(10)]}


@pytest.mark.parametrize("key", ["abc", "-5", "1.0", ""])
def test_a_token_of_another_kind_is_refused(rig: Rig, watch: Any, key: str) -> None:
    asked = {"StartTime": moment(now(rig)), "EndTime": moment(now(rig) + HOUR), "NextToken": wrap(key)}
    assert refused(watch.get_metric_data, MetricDataQueries=[metric("a")], **asked).code == "InvalidParameterValue"


def test_metrics_with_odd_names_are_each_on_one_page(rig: Rig, watch: Any) -> None:
    names = [f"{number:03}{tail}" for number in range(300) for tail in ("'", '"')]
    rows = [(Teller("Own", (("D", name),)), now(rig), {("M", "None"): single(1)}) for name in names]
    rig.run(rig.services._context.archive.write(rows))
    found: list[str] = []
    more: dict[str, str] = {}
    for _ in range(10):
        page = watch.list_metrics(Namespace="Own", **more)
        found += [each["Dimensions"][0]["Value"] for each in page["Metrics"]]
        if "NextToken" not in page:
            break
        more = {"NextToken": page["NextToken"]}
    assert sorted(found) == sorted(names)


@pytest.mark.parametrize(
    "queries",
    [
        [],
        [metric("M1")],
        [metric("m1"), metric("m1")],
        [{"Id": "e", "Expression": "m1 + 1"}],
        [{"Id": "e", "Expression": "e + 1"}],
        [{"Id": "e", "Expression": "1 +"}],
        [{"Id": "e", "Expression": "ANOMALY_DETECTION_BAND(m1)"}, metric("m1")],
        [{"Id": "e", "Expression": "NOSUCH(m1)"}, metric("m1")],
        [{"Id": "e", "Expression": "SEARCH('x', 'Sum', 30)"}],
        [{"Id": "e", "Expression": "SEARCH('(', 'Sum', 60)"}],
        [{"Id": "e"}],
        [metric("m1", stat="p101")],
        [metric("m1") | {"Expression": "1"}],
    ],
)
def test_what_is_no_query(rig: Rig, watch: Any, queries: list[dict[str, Any]]) -> None:
    assert refused(lambda *q, **_: data(watch, rig, *queries)).code == "ValidationError"


_DEEP = "(" * 400


@pytest.mark.parametrize(
    "expressions",
    [
        ["0 ^ -1"],
        ["1e999"],
        ["-1e308 - 1e308"],
        ["1" + " + 1" * 501],
        [f"SEARCH('{_DEEP}a{_DEEP.replace('(', ')')}', 'Sum', 60)"],
        ["SEARCH('" + "NOT " * 400 + "a', 'Sum', 60)"],
        ["SEARCH('a', 'Sum', 60000000000000000000)"],
        ["SUM([TIME_SERIES(1e308), TIME_SERIES(1e308)])"],
        ["TIME_SERIES(1)", *(f"[e{n}, e{n}]" for n in range(30))],
    ],
)
def test_what_cannot_be_reckoned_is_refused(rig: Rig, watch: Any, expressions: list[str]) -> None:
    queries = [{"Id": f"e{n}", "Expression": text, "Period": 60, "ReturnData": n == 0} for n, text in enumerate(expressions)]
    assert refused(lambda *q, **_: data(watch, rig, *queries)).code == "ValidationError"


def test_a_range_of_all_times_takes_no_memory(rig: Rig, watch: Any) -> None:
    tell(rig, Teller("Own", ()), "Hits", {now(rig): 5})
    for text in ("1", "TIME_SERIES(1)", "FILL(m1, 0)", "FILL(m1, REPEAT)", "FILL(m1, LINEAR)"):
        queries = [metric("m1"), {"Id": "e", "Expression": text, "Period": 60}]
        whole = {"StartTime": moment(0), "EndTime": dt.datetime(9999, 1, 1, tzinfo=dt.UTC)}
        error = refused(lambda *q, asked=queries, over=whole, **_: data(watch, rig, *asked, **over))
        assert (error.code, "data points" in error.message) == ("ValidationError", True)


def test_a_point_without_a_number_is_left_out(rig: Rig, watch: Any) -> None:
    tell(rig, Teller("Own", ()), "Hits", {now(rig): 0, now(rig) + 60: 4})
    found = data(watch, rig, metric("m1"), {"Id": "e", "Expression": "m1 ^ -1"})["MetricDataResults"][1]
    assert found["Values"] == [0.25]


def test_five_hundred_metrics_may_be_added_up(rig: Rig, watch: Any) -> None:
    found = data(watch, rig, {"Id": "e", "Expression": "1" + "+1" * 500, "Period": 3600})["MetricDataResults"][0]
    assert found["Values"] == [501.0]


# ------------------------------------------------------------------ protocols


@pytest.mark.parametrize("protocol", ["json", "query", "smithy-rpc-v2-cbor"])
def test_each_protocol_says_the_same(rig: Rig, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.loaders import Loader

    load = Loader.load_service_model

    def only(self: Loader, service: str, kind: str, **more: Any) -> Any:
        model = load(self, service, kind, **more)
        if service == "cloudwatch" and kind == "service-2":
            model = {**model, "metadata": {**model["metadata"], "protocol": protocol, "protocols": [protocol]}}
        return model

    monkeypatch.setattr(Loader, "load_service_model", only)
    client = boto3.session.Session().client(
        "cloudwatch",
        region_name="us-east-1",
        endpoint_url="http://127.0.0.1:8379",
        aws_access_key_id=ROOT_KEY[0],
        aws_secret_access_key=ROOT_KEY[1],
        config=Config(retries={"max_attempts": 1, "mode": "standard"}, parameter_validation=False),
    )
    client.meta.events.register("before-send", rig._send)
    assert client.meta.service_model.resolved_protocol == protocol
    at = moment(now(rig))
    dimensions = [{"Name": "Host", "Value": "ä <1>"}]
    client.put_metric_data(
        Namespace="Own",
        MetricData=[{"MetricName": f"M{n:03}", "Value": n + 0.5, "Timestamp": at, "Dimensions": dimensions} for n in range(300)],
    )
    assert client.list_metrics(MetricName="M007")["Metrics"] == [
        {"Namespace": "Own", "MetricName": "M007", "Dimensions": dimensions}
    ]
    (point,) = statistics(client, rig, metric="M007", Dimensions=dimensions, Statistics=None, ExtendedStatistics=["p99"])
    assert (point["Timestamp"], point["ExtendedStatistics"], point["Unit"]) == (at, {"p99": 7.5}, "None")
    query = metric("m", "M007")
    query["MetricStat"]["Metric"]["Dimensions"] = dimensions
    (result,) = data(client, rig, query)["MetricDataResults"]
    assert (result["Timestamps"], result["Values"]) == ([at], [7.5])
    assert refused(lambda **_: data(client, rig, {"Id": "e", "Expression": "1 +"})).code == "ValidationError"
