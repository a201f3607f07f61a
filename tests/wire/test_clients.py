"""Unmodified boto3 over a real socket."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import re
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.parsers import create_parser
from tests.wire.conftest import ACCOUNT, KEY, REGION, ROOT, SECRET, Endpoint
from tests.wire.shapes import botocore_model

from cachekeep.wire.codec import codec
from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import Call
from cachekeep.wire.http import HttpRequest

CREATED = dt.datetime(2026, 1, 31, 12, 0, tzinfo=dt.UTC)
GROUPS = [{"ReplicationGroupId": f"group-{n:03}", "Status": "available", "MemberClusters": []} for n in range(45)]


class Toy:
    """A service of a few operations with a state of its own."""

    def __init__(self) -> None:
        self.polls = 0

    def __call__(self, call: Call) -> Mapping[str, Any]:
        match call.service, call.operation:
            case "elasticache", "DescribeReplicationGroups":
                wanted = call.params.get("ReplicationGroupId")
                if wanted is not None and wanted not in {group["ReplicationGroupId"] for group in GROUPS}:
                    raise ApiError("ReplicationGroupNotFoundFault", f"ReplicationGroup {wanted} not found.")
                start, size = int(call.params.get("Marker", 0)), call.params.get("MaxRecords", 100)
                more = start + size < len(GROUPS)
                return {
                    "ReplicationGroups": GROUPS[start : start + size],
                    "Marker": str(start + size) if more else None,
                }
            case "elasticache", "DescribeCacheClusters":
                self.polls += 1
                return {"CacheClusters": [{"CacheClusterId": "c", "CacheClusterStatus": "available"}]}
            case "elasticache", "CreateReplicationGroup":
                return {"ReplicationGroup": {"ReplicationGroupId": call.params["ReplicationGroupId"], "Status": "creating"}}
            case "sts", "GetCallerIdentity":
                return {"Arn": call.principal.arn, "UserId": call.principal.account, "Account": call.principal.account}
            case "cloudwatch", "GetMetricStatistics":
                return {"Label": call.params["MetricName"], "Datapoints": [{"Timestamp": CREATED, "Average": 0.5}]}
            case "cloudwatch", "GetDashboard":
                raise ApiError("ResourceNotFound", "Dashboard x does not exist")
            case "kms", "DescribeKey":
                raise ApiError("NotFoundException", "Key 'arn' does not exist")
            case "kms", "Encrypt":
                return {"CiphertextBlob": call.params["Plaintext"][::-1], "KeyId": call.params["KeyId"]}
            case "ec2", "DescribeVpcs":
                return {"Vpcs": [{"VpcId": vpc, "IsDefault": True} for vpc in call.params["VpcIds"]]}
        return {}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, Endpoint]]:
    endpoint = Endpoint()
    endpoint.answer = Toy()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            path, _, query = self.path.partition("?")
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = HttpRequest(self.command, path, query, headers, body, self.client_address[0])
            response = asyncio.run(endpoint.gateway.handle(request))
            self.send_response(response.status)
            for name, value in response.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(response.body)))
            self.end_headers()
            self.wfile.write(response.body)

        do_GET = do_POST = answer

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", endpoint
    server.shutdown()
    server.server_close()
    thread.join()


def client(service: str, url: str, secret: str = SECRET, **options: Any) -> Any:
    session = boto3.Session(aws_access_key_id=KEY, aws_secret_access_key=secret, region_name=REGION)
    config = Config(retries={"total_max_attempts": 1}, **options)
    return session.client(service, endpoint_url=url, config=config)


def test_pages(served: tuple[str, Endpoint]) -> None:
    pages = client("elasticache", served[0]).get_paginator("describe_replication_groups")
    found = list(pages.paginate(PaginationConfig={"PageSize": 20}))
    assert [len(page["ReplicationGroups"]) for page in found] == [20, 20, 5]
    assert [group for page in found for group in page["ReplicationGroups"]] == GROUPS


def test_waiter(served: tuple[str, Endpoint]) -> None:
    client("elasticache", served[0]).get_waiter("cache_cluster_available").wait(CacheClusterId="c")


def test_nested_parameters(served: tuple[str, Endpoint]) -> None:
    url, endpoint = served
    params = {
        "ReplicationGroupId": "G-1",
        "ReplicationGroupDescription": "ein Größe & mehr=%",
        "NodeGroupConfiguration": [
            {"NodeGroupId": "0001", "Slots": "0-8191", "ReplicaAvailabilityZones": ["a", "b"]},
            {"ReplicaCount": 2},
        ],
        "Tags": [{"Key": "k", "Value": ""}],
        "AutomaticFailoverEnabled": True,
        "PreferredCacheClusterAZs": ["a", "b"],
        "SecurityGroupIds": ["sg-1"],
    }
    answer = client("elasticache", url).create_replication_group(**params)
    assert answer["ReplicationGroup"]["Status"] == "creating"
    assert endpoint.calls[-1].params == params
    assert answer["ResponseMetadata"]["RequestId"] == endpoint.calls[-1].request_id


def test_typed_faults(served: tuple[str, Endpoint]) -> None:
    elasticache = client("elasticache", served[0])
    with pytest.raises(elasticache.exceptions.ReplicationGroupNotFoundFault) as caught:
        elasticache.describe_replication_groups(ReplicationGroupId="nope")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 404
    assert caught.value.response["Error"]["Message"] == "ReplicationGroup nope not found."
    kms = client("kms", served[0])
    with pytest.raises(kms.exceptions.NotFoundException):
        kms.describe_key(KeyId="x")
    cloudwatch = client("cloudwatch", served[0])
    with pytest.raises(cloudwatch.exceptions.ResourceNotFound) as caught:
        cloudwatch.get_dashboard(DashboardName="x")
    assert caught.value.response["Error"]["Code"] == "ResourceNotFound"


def test_the_other_services(served: tuple[str, Endpoint]) -> None:
    url = served[0]
    identity = client("sts", url).get_caller_identity()
    assert (identity["Arn"], identity["Account"]) == (ROOT, ACCOUNT)
    statistics = client("cloudwatch", url).get_metric_statistics(
        Namespace="AWS/ElastiCache", MetricName="CPUUtilization", StartTime=CREATED, EndTime=CREATED, Period=60
    )
    assert statistics["Datapoints"] == [{"Timestamp": CREATED, "Average": 0.5}]
    assert client("kms", url).encrypt(KeyId="k", Plaintext=b"\x00abc")["CiphertextBlob"] == b"cba\x00"
    assert client("ec2", url).describe_vpcs(VpcIds=["vpc-1"])["Vpcs"] == [{"VpcId": "vpc-1", "IsDefault": True}]
    assert client("sns", url).delete_topic(TopicArn="arn:aws:sns:us-east-1:000000000000:t")["ResponseMetadata"]
    assert client("iam", url).list_roles(MaxItems=1)["ResponseMetadata"]["HTTPStatusCode"] == 200


def test_wrong_secrets_and_presigned_urls(served: tuple[str, Endpoint]) -> None:
    url = served[0]
    with pytest.raises(ClientError) as caught:
        client("elasticache", url, "wrong").describe_events()
    assert caught.value.response["Error"]["Code"] == "SignatureDoesNotMatch"
    with pytest.raises(ClientError) as caught:
        client("kms", url, "wrong").list_keys()
    assert caught.value.response["Error"]["Code"] == "InvalidSignatureException"
    link = client("sts", url).generate_presigned_url("get_caller_identity", HttpMethod="GET")
    with urllib.request.urlopen(link, timeout=60) as answer:
        assert ROOT.encode() in answer.read()


# ------------------------------------------------------------------ answers that AWS has given


def recorded() -> list[Any]:
    """The outputs that aws-cli prints in its own documentation, per operation."""
    awscli = pytest.importorskip("awscli")
    folder = Path(awscli.__file__).parent / "examples" / "elasticache"
    names = {re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower(): name for name in codec("elasticache").model.operation_names}
    found = []
    for page in sorted(folder.glob("*.rst")):
        for number, text in enumerate(re.findall(r"(?m)^Output::\n\n((?:(?: {4}.*)?\n)+)", page.read_text())):
            try:
                output = json.loads(text)
            except ValueError:
                continue  # an abridged answer
            if page.stem in names:
                found.append(pytest.param(names[page.stem], output, id=f"{page.stem}-{number}"))
    return found


@pytest.mark.parametrize(("operation", "output"), recorded())
def test_recorded_answers_can_be_given_again(operation: str, output: dict[str, Any]) -> None:
    ours = codec("elasticache")
    shape = botocore_model("elasticache").operation_model(operation).output_shape
    if ours.model.operation(operation).output is None:
        assert output in ({}, "")
        return
    typed = as_types(shape, output)
    headers, body = ours.write(ours.model.operation(operation), "query", typed, "id")
    parsed = create_parser("query").parse({"status_code": 200, "headers": headers, "body": body}, shape)
    del parsed["ResponseMetadata"]
    assert parsed == typed


def as_types(shape: Any, value: Any) -> Any:
    """The CLI's JSON in Python's types, without what the model does not have (the pages span years of API)."""
    if shape.type_name == "structure":
        return {name: as_types(shape.members[name], below) for name, below in value.items() if name in shape.members}
    if shape.type_name == "list":
        return [as_types(shape.member, below) for below in value]
    if shape.type_name == "timestamp":
        return dt.datetime.fromisoformat(value)
    return value


def test_there_are_recorded_answers() -> None:
    assert len(recorded()) > 40
