"""The whole by TLS: the API, its commands and unmodified clients, as the guide says."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import valkey
from tests.acceptance.installation import Installation, created, eventually

GUIDE = Path(__file__).parents[2] / "docs/guide/tls.md"


def test_what_the_guide_says(another: Callable[..., Installation], tmp_path: Path) -> None:
    installation = another("--tls").up()
    environment = installation.aws_environment() | {"CACHEKEEP_DATA_DIR": str(installation.data_dir)}
    assert environment["AWS_ENDPOINT_URL"].startswith("https://127.0.0.1:")
    host, port = environment["AWS_ENDPOINT_URL"].removeprefix("https://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as plain:
        plain.sendall(b"GET /_cachekeep/health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert not _answered(plain)
    script = "set -e\n" + "".join(re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL))
    (tmp_path / "clients.py").write_text("".join(re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)))
    done = subprocess.run(
        ["sh", "-c", f"{script}\n{sys.executable} -W ignore clients.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.endswith("OK\nhello\n")
    assert "available" in installation.run("status", "demo").stdout
    assert _asks_as_one_who_has_to_come_by_tls(installation)["ReplicationGroups"]
    installation.run("chaos", "kill-node", "demo", "--for", "1s", "--yes")
    (report,) = (installation.data_dir / "reports").glob("*.json")
    assert json.loads(report.read_text())["writes_again"] is True


def _asks_as_one_who_has_to_come_by_tls(installation: Installation) -> dict[str, Any]:
    iam = installation.client("iam")
    iam.create_user(UserName="careful")
    may = {"Effect": "Allow", "Action": "elasticache:Describe*", "Resource": "*"}
    document = {"Version": "2012-10-17", "Statement": [may | {"Condition": {"Bool": {"aws:SecureTransport": "true"}}}]}
    iam.put_user_policy(UserName="careful", PolicyName="by-tls", PolicyDocument=json.dumps(document))
    key = iam.create_access_key(UserName="careful")["AccessKey"]
    env = installation.aws_environment()
    asking = boto3.client(
        "elasticache",
        endpoint_url=env["AWS_ENDPOINT_URL"],
        region_name=env["AWS_REGION"],
        aws_access_key_id=key["AccessKeyId"],
        aws_secret_access_key=key["SecretAccessKey"],
        verify=env["AWS_CA_BUNDLE"],
    )
    answer: dict[str, Any] = asking.describe_replication_groups()
    return answer


def test_from_one_authority_to_another(another: Callable[..., Installation]) -> None:
    installation = another("--tls").up()
    address = created(installation.client(), "demo", TransitEncryptionEnabled=True)["NodeGroups"][0]["PrimaryEndpoint"]["Address"]
    pids, old = installation.pids(), installation.run("ca").stdout
    for step in ("reissue", "retire"):
        assert "certificate authority" in installation.run("rotate-ca", step, check=False).stderr
    installation.run("rotate-ca", "publish")
    both = installation.run("ca").stdout
    new = both.removeprefix(old)
    assert both.startswith(old)
    assert new.count("BEGIN CERTIFICATE") == 1
    assert (_believed(address, old), _believed(address, new)) == (True, False), "it issues nothing yet"
    assert "`cachekeep rotate-ca reissue` first" in installation.run("rotate-ca", "retire", check=False).stderr
    assert "trust the old authority alone are left out" in installation.run("rotate-ca", "reissue").stdout
    eventually(lambda: _believed(address, new), what="another certificate")
    assert not _believed(address, old)
    eventually(lambda: installation.run("rotate-ca", "retire", check=False).returncode == 0, what="nobody shows the old one's")
    assert installation.run("ca").stdout == new
    assert "available" in installation.run("status", "demo").stdout
    installation.client().describe_replication_groups()
    assert installation.pids() == pids


def _believed(address: str, trust: str) -> bool:
    with valkey.Valkey(host=address, ssl=True, ssl_ca_data=trust, ssl_check_hostname=True) as client:
        try:
            return bool(client.ping())
        except valkey.ConnectionError:
            return False


def test_beyond_this_machine_the_api_is_served_by_tls_alone(another: Callable[..., Installation]) -> None:
    installation = another()
    done = installation.run("up", "--port", "0", "--host", "0.0.0.0", "--address-pool", installation.pool, check=False)
    assert done.returncode == 1
    assert "without TLS everybody on the way reads and changes what is asked" in done.stderr


def _answered(line: socket.socket) -> bool:
    try:
        return line.recv(5) == b"HTTP/"
    except ConnectionResetError:
        return False
