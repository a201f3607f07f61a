"""What the command line says of a cache that has no recording."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from cachekeep.cli.past import timeline


def test_a_tagged_cache_that_is_not_recorded_has_its_reason_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(timeline, ["demo", "--data-dir", str(tmp_path)])
    assert "demo is not recorded (recorded: none is)." in str(done.exception)
    assert "Where it is tagged, the log of `cachekeep up` says why it is not recorded." in str(done.exception)
