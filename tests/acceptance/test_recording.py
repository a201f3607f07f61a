"""A cache that is tagged for it can be read as it was at any moment: through crashes, a failover, and without a control plane."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable

import valkey
from tests.acceptance.installation import Installation, created, eventually

from cachekeep.backup.recording import recordings


def now() -> str:
    return dt.datetime.now(dt.UTC).isoformat()


def test_a_tagged_cache_is_read_as_it_was(another: Callable[..., Installation]) -> None:
    installation = another().up()
    client = installation.client()
    tag = {"Key": "cachekeep:point-in-time", "Value": "7d"}
    created(client, "demo", NumCacheClusters=2, AutomaticFailoverEnabled=True, Tags=[tag])
    host, _, port = installation.status("demo")["endpoints"]["primary"].partition(":")
    user = valkey.Valkey(host, int(port), retry=None)

    def read(at: str, *command: str) -> str | None:
        """None: not recorded yet."""
        done = installation.run("at", "demo", at, *command, check=False)
        assert done.returncode == 0 or "was not recorded" in done.stderr or "is not recorded" in done.stderr, done.stderr
        return done.stdout.strip() if done.returncode == 0 else None

    def written(value: str) -> str:
        """A moment at which that is there."""

        def done() -> bool:
            try:
                return bool(user.set("key", value))
            except valkey.exceptions.ConnectionError:
                return False

        eventually(done, what="a write")
        eventually(lambda: read("latest", "get", "key") == value, what=f"{value} is recorded")
        [recording] = recordings(installation.data_dir)
        recorded_ns = time.time_ns()

        def end_ns() -> int:
            return recording.timeline().spans()[-1].end

        eventually(lambda: end_ns() > recorded_ns, what="the recording goes on")
        # Down to the microsecond that a moment is told in: a recording that ends there was not recorded a microsecond later.
        return (dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=end_ns() // 1000)).isoformat()

    moments = {"one": written("one")}
    installation.kill()
    moments["without a control plane"] = written("without a control plane")
    installation.up()

    def leader() -> str | None:
        return next((n["name"] for n in installation.status("demo")["nodes"] if n.get("role") == "primary"), None)

    before = eventually(leader)
    installation.run("failover", "demo")
    eventually(lambda: leader() not in (None, before), what="another leads")
    moments["behind the failover"] = written("behind the failover")
    for value, at in moments.items():
        assert read(at, "get", "key") == value
    file = installation.data_dir.parent / "one.rdb"
    installation.run("at", "--rdb", str(file), "demo", moments["one"])
    assert file.read_bytes()[:5] in (b"REDIS", b"VALKE")
    assert "File exists" in installation.run("at", "--rdb", str(file), "demo", moments["one"], check=False).stderr
    shown = installation.run("timeline", "demo").stdout
    assert shown.startswith("demo shard 0001: recording\n")
    assert "recording was switched on" in shown
    writes = installation.run("history", "demo", "key").stdout
    assert " db0  SET  " in writes
    refused = installation.run("at", "demo", "latest", "set", "key", "other", check=False)
    assert "read only replica" in refused.stderr
    early = installation.run("at", "demo", "2001-01-01T00:00:00Z", "get", "key", check=False)
    assert "was not recorded: the first one after it is" in early.stderr

    arn = client.describe_replication_groups(ReplicationGroupId="demo")["ReplicationGroups"][0]["ARN"]
    client.remove_tags_from_resource(ResourceName=arn, TagKeys=[tag["Key"]])
    [recording] = recordings(installation.data_dir)
    eventually(lambda: not recording.running(), what="the recorder ends")
    assert read(moments["one"], "get", "key") == "one", "what was recorded stays"
    client.add_tags_to_resource(ResourceName=arn, Tags=[{"Key": tag["Key"], "Value": "for ever"}])
    eventually(lambda: "must be a time such as 7d" in installation.narration(), what="a tag that says nothing")
    client.add_tags_to_resource(ResourceName=arn, Tags=[tag])
    eventually(recording.running, what="the recorder runs again")
    installation.run("down", "--engines", "--yes")
    eventually(lambda: not recording.running(), what="the recorder ends with the engines")
