"""Nobody joins: another user of the machine finds nothing to connect to, and nothing to read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.reliability import intruder

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="another user's process needs root"
)
def test_another_user_finds_no_way_in(tmp_path: Path) -> None:
    command = [sys.executable, "-m", intruder.__name__, str(tmp_path), "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if "no network namespace" in done.stderr:
        pytest.skip("this container may make no network namespace")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["problems"] == []
    assert found["chain: normal runs"] == found["fold: normal runs"] == 1
