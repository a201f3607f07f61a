"""The door, seen from outside: raw bytes in, raw bytes out."""

from __future__ import annotations

import datetime as dt
import json
import logging
from functools import partial
from typing import Any

import cbor2
import pytest
from botocore.credentials import Credentials
from tests.wire.conftest import ACCOUNT, KEY, REGION, ROOT, Endpoint, form, presigned, signed, unsigned

from cachekeep.wire.faults import ApiError
from cachekeep.wire.gateway import BODY_BYTES_MAX
from cachekeep.wire.http import HttpResponse

WHEN = dt.datetime(2026, 1, 31, 12, 0, 0, 250_000, tzinfo=dt.UTC)


def refusal(response: HttpResponse) -> tuple[int, str, str]:
    """Status, code and message of a fault in any of the forms."""
    kind = response.headers["content-type"]
    if "xml" in kind:
        text = response.body.decode()
        code = text.partition("<Code>")[2].partition("</Code>")[0]
        return response.status, code, text.partition("<Message>")[2].partition("</Message>")[0]
    tree = cbor2.loads(response.body) if "cbor" in kind else json.loads(response.body)
    return response.status, tree["__type"], tree["message"]


def test_the_document_has_the_models_names(endpoint: Endpoint) -> None:
    endpoint.answer = lambda call: {
        "Marker": None,
        "CacheClusters": [
            {
                "CacheClusterId": "a",
                "CacheClusterCreateTime": WHEN,
                "NumCacheNodes": 2,
                "AuthTokenEnabled": False,
                "CacheSecurityGroups": [],
                "CacheNodes": [{"CacheNodeId": "0001", "Endpoint": {"Address": "127.77.0.1", "Port": 6379}}],
                "SecurityGroups": [{"SecurityGroupId": "sg-1", "Status": "active"}],
            }
        ],
    }
    response = endpoint.send(signed(form("elasticache", "DescribeCacheClusters")))
    request_id = response.headers["x-amzn-requestid"]
    assert endpoint.calls[0].request_id == request_id
    assert response.status == 200
    assert response.headers["content-type"].startswith("text/xml")
    assert response.body.decode() == (
        '<DescribeCacheClustersResponse xmlns="http://elasticache.amazonaws.com/doc/2015-02-02/">'
        "<DescribeCacheClustersResult><CacheClusters><CacheCluster>"
        "<CacheClusterId>a</CacheClusterId><CacheClusterCreateTime>2026-01-31T12:00:00.250Z</CacheClusterCreateTime>"
        "<NumCacheNodes>2</NumCacheNodes><AuthTokenEnabled>false</AuthTokenEnabled>"
        "<CacheSecurityGroups></CacheSecurityGroups>"
        "<CacheNodes><CacheNode><CacheNodeId>0001</CacheNodeId>"
        "<Endpoint><Address>127.77.0.1</Address><Port>6379</Port></Endpoint></CacheNode></CacheNodes>"
        "<SecurityGroups><member><SecurityGroupId>sg-1</SecurityGroupId><Status>active</Status></member></SecurityGroups>"
        "</CacheCluster></CacheClusters></DescribeCacheClustersResult>"
        f"<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></DescribeCacheClustersResponse>"
    )


@pytest.mark.parametrize(
    ("operation", "parameter"),
    [
        ("DeleteCacheParameterGroup", "CacheParameterGroupName"),
        ("DeleteCacheSecurityGroup", "CacheSecurityGroupName"),
        ("DeleteCacheSubnetGroup", "CacheSubnetGroupName"),
    ],
)
def test_the_deletes_of_groups_have_no_result(endpoint: Endpoint, operation: str, parameter: str) -> None:
    response = endpoint.send(signed(form("elasticache", operation, **{parameter: "x"})))
    assert response.body.decode() == (
        f'<{operation}Response xmlns="http://elasticache.amazonaws.com/doc/2015-02-02/"><ResponseMetadata>'
        f"<RequestId>{response.headers['x-amzn-requestid']}</RequestId></ResponseMetadata></{operation}Response>"
    )


def test_ec2_has_its_own_form(endpoint: Endpoint) -> None:
    endpoint.answer = lambda call: {"Vpcs": [{"VpcId": "vpc-1", "Tags": [{"Key": "a", "Value": ""}]}]}
    body = form("ec2", "DescribeVpcs", **{"VpcId.1": "vpc-1", "Filter.1.Name": "f", "Filter.1.Value.1": "v"})
    response = endpoint.send(signed(body, service="ec2"))
    assert endpoint.calls[0].params == {"VpcIds": ["vpc-1"], "Filters": [{"Name": "f", "Values": ["v"]}]}
    assert response.body.decode() == (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<DescribeVpcsResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">'
        f"<requestId>{response.headers['x-amzn-requestid']}</requestId><vpcSet><item><vpcId>vpc-1</vpcId>"
        "<tagSet><item><key>a</key><value></value></item></tagSet></item></vpcSet></DescribeVpcsResponse>"
    )
    endpoint.answer = lambda call: {}
    deleted = endpoint.send(signed(form("ec2", "DeleteVpc", VpcId="vpc-1"), service="ec2"))
    assert deleted.body.endswith(b"</requestId><return>true</return></DeleteVpcResponse>")


@pytest.mark.parametrize(
    "names",
    [
        "SubnetIds.SubnetIdentifier.{}",
        "SubnetIds.member.{}",
        "SubnetIds.String.{}",
        "SubnetIds.SubnetId.{}",
        "SubnetIds.{}",
    ],
)
def test_list_items_are_found_under_any_of_their_names(endpoint: Endpoint, names: str) -> None:
    items = {names.format(index): f"subnet-{index}" for index in (10, 2, 1)}
    body = form("elasticache", "CreateCacheSubnetGroup", CacheSubnetGroupName="G", CacheSubnetGroupDescription="d", **items)
    endpoint.send(signed(body))
    assert endpoint.calls[0].params["SubnetIds"] == ["subnet-1", "subnet-2", "subnet-10"]


def test_empty_means_unset_but_a_tags_value_may_be_empty(endpoint: Endpoint) -> None:
    tags = {"Tags.Tag.1.Key": "k", "Tags.Tag.1.Value": ""}
    unset = {"EngineVersion": "", "NumCacheNodes": "", "CacheSecurityGroupNames": "", "AutoMinorVersionUpgrade": ""}
    endpoint.send(signed(form("elasticache", "CreateCacheCluster", CacheClusterId="My-Id", **unset, **tags)))
    assert endpoint.calls[0].params == {
        "CacheClusterId": "My-Id",
        "CacheSecurityGroupNames": [],
        "Tags": [{"Key": "k", "Value": ""}],
    }


def test_the_call_says_who_and_when(endpoint: Endpoint) -> None:
    endpoint.send(signed(form("elasticache", "DescribeEvents"), region="eu-west-1"))
    (call,) = endpoint.calls
    assert (call.service, call.operation, call.region, call.source_ip) == (
        "elasticache",
        "DescribeEvents",
        REGION,
        "127.0.0.1",
    )
    assert (call.principal.access_key, call.principal.arn, call.principal.account) == (KEY, ROOT, ACCOUNT)
    assert abs((call.received_at - dt.datetime.now(dt.UTC)).total_seconds()) < 60


# ------------------------------------------------------------------ routing


@pytest.mark.parametrize(("service", "action"), [("iam", "CreateUser"), ("elasticache", "CreateUser")])
def test_one_action_name_two_services(endpoint: Endpoint, service: str, action: str) -> None:
    body = form(service, action, UserName="u", UserId="u", Engine="valkey", AccessString="on ~* +@all")
    assert endpoint.send(signed(body, service=service)).status == 200
    assert endpoint.calls[0].service == service


def test_cloudwatch_in_its_three_protocols(endpoint: Endpoint) -> None:
    endpoint.answer = lambda call: {"MetricAlarms": [{"AlarmName": "x", "Threshold": 1.5, "StateUpdatedTimestamp": WHEN}]}
    as_query = endpoint.send(signed(form("cloudwatch", "DescribeAlarms", **{"AlarmNames.member.1": "x"}), service="cloudwatch"))
    assert b"<MetricAlarms><member><AlarmName>x</AlarmName><Threshold>1.5</Threshold>" in as_query.body
    as_json = endpoint.send(
        signed(
            b'{"AlarmNames":["x"]}',
            service="cloudwatch",
            headers={"X-Amz-Target": "GraniteServiceVersion20100801.DescribeAlarms"},
        )
    )
    assert as_json.headers["content-type"] == "application/x-amz-json-1.0"
    assert json.loads(as_json.body)["MetricAlarms"][0]["StateUpdatedTimestamp"] == WHEN.timestamp()
    as_cbor = endpoint.send(
        signed(
            cbor2.dumps({"AlarmNames": ["x"]}),
            service="cloudwatch",
            path="/service/GraniteServiceVersion20100801/operation/DescribeAlarms",
        )
    )
    assert as_cbor.headers["smithy-protocol"] == "rpc-v2-cbor"
    assert cbor2.loads(as_cbor.body)["MetricAlarms"][0]["StateUpdatedTimestamp"] == WHEN
    assert [call.params for call in endpoint.calls] == [{"AlarmNames": ["x"]}] * 3


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (partial(signed, form("elasticache", "NoSuchThing")), 400, "InvalidAction"),
        (partial(signed, b"Version=2015-02-02"), 400, "MissingAction"),
        (partial(signed, form("sts", "GetCallerIdentity")), 400, "InvalidAction"),
        (partial(signed, b"\xff\xfe=1"), 400, "MalformedQueryString"),
        (partial(signed, b"a&" * 30_000), 400, "MalformedQueryString"),
        (partial(signed, b"{}", headers={"X-Amz-Target": "AmazonElastiCache.DescribeEvents"}), 400, "UnknownOperationException"),
        (partial(signed, b"{}", service="kms", headers={"X-Amz-Target": "TrentService.Nope"}), 400, "UnknownOperationException"),
        (partial(signed, b"{", service="kms", headers={"X-Amz-Target": "TrentService.ListKeys"}), 400, "SerializationException"),
        (partial(signed, form("elasticache", "DescribeEvents", MaxRecords="ten")), 400, "InvalidParameterValue"),
        (partial(signed, form("elasticache", "DescribeEvents", MaxRecords="9" * 12)), 400, "InvalidParameterValue"),
        (partial(signed, form("elasticache", "DescribeEvents", StartTime="soon")), 400, "InvalidParameterValue"),
        (partial(signed, form("iam", "ListRoles", MaxItems="ten"), service="iam"), 400, "MalformedInput"),
        (partial(signed, b"x" * (BODY_BYTES_MAX + 1)), 413, "RequestEntityTooLarge"),
        (partial(signed, method="DELETE"), 405, "MethodNotAllowed"),
        (partial(signed, method="GET"), 400, "MissingAction"),
        (partial(unsigned, form("elasticache", "DescribeEvents")), 403, "MissingAuthenticationToken"),
        (partial(unsigned, method="GET"), 403, "MissingAuthenticationToken"),
        (partial(unsigned, headers={"x-amz-target": "TrentService.ListKeys"}), 400, "MissingAuthenticationTokenException"),
        (partial(unsigned, headers={"authorization": "Basic YTpi"}), 400, "IncompleteSignature"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals(endpoint: Endpoint, request_: Any, status: int, code: str) -> None:
    response = endpoint.send(request_())
    assert refusal(response)[:2] == (status, code)
    assert response.headers["x-amzn-requestid"]
    assert not endpoint.calls


def test_an_unknown_service_is_named() -> None:
    open_endpoint = Endpoint(auth="open")
    status, code, message = refusal(open_endpoint.send(unsigned(b"{}", headers={"x-amz-target": "DynamoDB_20120810.ListTables"})))
    assert (status, code) == (400, "UnknownService")
    assert "DynamoDB_20120810" in message


def test_what_is_not_served_says_so() -> None:
    endpoint = Endpoint(served={"elasticache": {"DescribeEvents"}})
    assert endpoint.send(signed(form("elasticache", "DescribeEvents"))).status == 200
    for service, action in (("elasticache", "CreateCacheCluster"), ("sts", "GetCallerIdentity")):
        status, code, message = refusal(endpoint.send(signed(form(service, action), service=service)))
        assert (status, code) == (400, "UnsupportedOperation")
        assert message == f"{service}:{action} is not supported by Cachekeep yet: nothing was changed."


def test_a_get_is_as_good_as_a_post(endpoint: Endpoint) -> None:
    request = presigned("Action=DescribeCacheClusters&Version=2015-02-02&CacheClusterId=a%2Bb%20c")
    assert endpoint.send(request).status == 200
    assert endpoint.calls[0].params == {"CacheClusterId": "a+b c"}


FOREIGN = (
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:3000"},  # a page of another server of this machine
    {"origin": "http://127.0.0.1:8379.evil.example"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"host": "rebound.example:8379"},
    {"host": "localhost.evil.example"},
    {"host": "0.0.0.0:8379"},
)


@pytest.mark.parametrize("headers", FOREIGN, ids=lambda headers: " ".join(headers.values()))
def test_open_is_not_open_to_web_pages(headers: dict[str, str]) -> None:
    endpoint = Endpoint(auth="open")
    request = unsigned(form("elasticache", "DescribeEvents"), headers=headers)
    assert not endpoint.gateway.expects(request)
    status, code, message = refusal(endpoint.send(request))
    assert (status, code) == (403, "AccessDenied")
    assert "--auth open" in message
    assert not endpoint.calls
    assert Endpoint().send(signed(form("elasticache", "DescribeEvents"))).status == 200


@pytest.mark.parametrize(
    "headers",
    [{"host": "localhost:8379", "origin": "http://localhost:8379", "sec-fetch-site": "same-origin"}, {"host": "[::1]:8379"}],
    ids=str,
)
def test_open_is_open_to_this_machine(headers: dict[str, str]) -> None:
    request = unsigned(form("elasticache", "DescribeEvents"), headers=headers)
    endpoint = Endpoint(auth="open")
    assert endpoint.gateway.expects(request)
    assert endpoint.send(request).status == 200


def test_open_takes_anyone() -> None:
    endpoint = Endpoint(auth="open")
    body = form("elasticache", "DescribeEvents")
    stranger = signed(body, credentials=Credentials("whoever", "whatever", "token"))
    for request in (unsigned(body), stranger, unsigned(body, headers={"authorization": "Bearer x"}), signed(body)):
        assert endpoint.send(request).status == 200
    assert [call.principal.access_key for call in endpoint.calls] == ["", "whoever", "", KEY]
    assert {call.principal.arn for call in endpoint.calls} == {ROOT}
    rpc = unsigned(b"{}", headers={"x-amz-target": "TrentService.ListKeys"})
    assert endpoint.send(rpc).status == 200
    assert endpoint.calls[-1].service == "kms"
    assert refusal(endpoint.send(unsigned(b"Action=DescribeEvents")))[:2] == (400, "UnknownService")


# ------------------------------------------------------------------ faults


def fails(error: Exception) -> Any:
    def answer(call: Any) -> Any:
        raise error

    return answer


@pytest.mark.parametrize(
    ("code", "status", "wire_code"),
    [
        ("CacheClusterNotFound", 404, "CacheClusterNotFound"),
        ("CacheClusterNotFoundFault", 404, "CacheClusterNotFound"),
        ("ReplicationGroupNotFoundFault", 404, "ReplicationGroupNotFoundFault"),
        ("CacheSubnetGroupNotFoundFault", 400, "CacheSubnetGroupNotFoundFault"),
        ("InvalidParameterCombinationException", 400, "InvalidParameterCombination"),
        ("Throttling", 418, "Throttling"),
    ],
)
def test_faults_have_the_models_code_and_status(endpoint: Endpoint, code: str, status: int, wire_code: str) -> None:
    endpoint.answer = fails(ApiError(code, "No <such> thing", status=418))
    response = endpoint.send(signed(form("elasticache", "DescribeEvents")))
    assert response.status == status
    assert response.body.decode() == (
        '<ErrorResponse xmlns="http://elasticache.amazonaws.com/doc/2015-02-02/"><Error><Type>Sender</Type>'
        f"<Code>{wire_code}</Code><Message>No &lt;such&gt; thing</Message></Error>"
        f"<RequestId>{response.headers['x-amzn-requestid']}</RequestId></ErrorResponse>"
    )


def test_ec2_faults(endpoint: Endpoint) -> None:
    endpoint.answer = fails(ApiError("InvalidVpcID.NotFound", "The vpc ID 'vpc-1' does not exist"))
    response = endpoint.send(signed(form("ec2", "DescribeVpcs"), service="ec2"))
    assert response.status == 400
    assert response.body.decode() == (
        '<?xml version="1.0" encoding="UTF-8"?>\n<Response><Errors><Error><Code>InvalidVpcID.NotFound</Code>'
        "<Message>The vpc ID 'vpc-1' does not exist</Message></Error></Errors>"
        f"<RequestID>{response.headers['x-amzn-requestid']}</RequestID></Response>"
    )


def test_what_nobody_foresaw_is_logged_and_not_shown(endpoint: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    endpoint.answer = fails(RuntimeError("the secret detail"))
    with caplog.at_level(logging.ERROR):
        response = endpoint.send(signed(form("elasticache", "DescribeEvents")))
    assert refusal(response)[:2] == (500, "InternalFailure")
    assert b"secret detail" not in response.body
    assert b"<Type>Receiver</Type>" in response.body
    assert response.headers["x-amzn-requestid"] in caplog.text
    assert "the secret detail" in caplog.text


def test_a_result_of_the_wrong_shape_is_never_sent(endpoint: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    endpoint.answer = lambda call: {"Eventz": []}
    assert endpoint.send(signed(form("elasticache", "DescribeEvents"))).status == 500
    assert "has no member Eventz" in caplog.text


# ------------------------------------------------------------------ validation


def test_elasticache_words(endpoint: Endpoint) -> None:
    def said(action: str, **params: str) -> tuple[str, str]:
        return refusal(endpoint.send(signed(form("elasticache", action, **params))))[1:]

    missing = "The parameter CacheClusterId must be provided and must not be blank."
    assert said("CreateCacheCluster") == ("InvalidParameterValue", missing)
    assert said("CreateCacheCluster", CacheClusterId="") == ("InvalidParameterValue", missing)
    code, message = said("CreateCacheCluster", CacheClusterId="a", AZMode="sideways")
    assert code == "InvalidParameterValue"
    assert message == "Invalid value 'sideways' for AZMode: valid values are single-az, cross-az."


def test_coral_words(endpoint: Endpoint) -> None:
    body = form("iam", "CreateUser", **{"Tags.member.1.Key": "", "Tags.member.1.Value": "é☃", "Path": "no"})
    status, code, message = refusal(endpoint.send(signed(body, service="iam")))
    assert (status, code) == (400, "ValidationError")
    count, _, problems = message.partition(": ")
    assert count == "4 validation errors detected"
    constraint = " failed to satisfy constraint: Member must "
    assert {problem.partition(constraint)[0] for problem in problems.split("; ")} == {
        "Value null at 'userName'",
        "Value '' at 'tags.1.member.key'",
        "Value 'é☃' at 'tags.1.member.value'",
        "Value 'no' at 'path'",
    }
    assert f"'tags.1.member.key'{constraint}have length greater than or equal to 1" in message
    accepted = form("iam", "CreateUser", UserName="u", **{"Tags.member.1.Key": "Größe", "Tags.member.1.Value": "東京 7"})
    assert endpoint.send(signed(accepted, service="iam")).status == 200


def test_json_words(endpoint: Endpoint) -> None:
    request = signed(b'{"KeyId":7}', service="kms", headers={"X-Amz-Target": "TrentService.DescribeKey"})
    assert refusal(endpoint.send(request))[1:] == (
        "SerializationException",
        "The value of KeyId is malformed: expected a string.",
    )
    request = signed(b"{}", service="kms", headers={"X-Amz-Target": "TrentService.DescribeKey"})
    assert refusal(endpoint.send(request))[1:] == (
        "ValidationException",
        "1 validation error detected: Value null at 'keyId' failed to satisfy constraint: Member must not be null",
    )
    request = signed(b'{"CiphertextBlob":""}', service="kms", headers={"X-Amz-Target": "TrentService.Decrypt"})
    assert "Value '' at 'ciphertextBlob'" in refusal(endpoint.send(request))[2]


def test_secrets_are_not_read_back(endpoint: Endpoint) -> None:
    body = form("iam", "ChangePassword", OldPassword="hunter2", NewPassword="hunter3\x01" + "x" * 200)
    response = endpoint.send(signed(body, service="iam"))
    assert response.status == 400
    assert b"hunter" not in response.body


def test_unknown_parameters_are_passed_over(endpoint: Endpoint) -> None:
    body = form("elasticache", "DescribeEvents", Novelty="1", **{"A.B.C": "2"})
    assert endpoint.send(signed(body)).status == 200
    assert endpoint.calls[0].params == {}


@pytest.mark.parametrize("text", ["a%00b", "%00"])
def test_what_no_database_can_keep_is_refused(endpoint: Endpoint, text: str) -> None:
    body = f"Action=CreateUser&Version=2015-02-02&UserId={text}".encode()
    assert refusal(endpoint.send(signed(body)))[1:] == (
        "InvalidParameterValue",
        "The value of UserId is malformed: expected text without NUL characters.",
    )
    rpc = signed(rb'{"KeyId":"\ud800"}', service="kms", headers={"X-Amz-Target": "TrentService.DescribeKey"})
    assert refusal(endpoint.send(rpc))[1] == "SerializationException"


def test_a_version_of_another_service_than_the_signatures(endpoint: Endpoint) -> None:
    body = form("iam", "CreateUser", UserName="u", UserId="u", Engine="valkey", AccessString="on")
    assert refusal(endpoint.send(signed(body, service="elasticache")))[:2] == (400, "InvalidAction")
    rpc = signed(b"{}", service="cloudwatch", headers={"X-Amz-Target": "TrentService.TagResource"})
    assert refusal(endpoint.send(rpc))[:2] == (400, "UnknownOperationException")
    assert not endpoint.calls


def test_open_enumerations_are_left_to_the_operations(endpoint: Endpoint) -> None:
    new_type = form("ec2", "DescribeInstanceTypes", **{"InstanceType.1": "z99.huge"})
    assert endpoint.send(signed(new_type, service="ec2")).status == 200
