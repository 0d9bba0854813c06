"""Nobody joins: another user of the machine finds nothing to connect to, and nothing to read."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="another user's process needs root"
)
def test_another_user_finds_no_way_in(tmp_path: Path) -> None:
    document = tmp_path / "reliability.md"
    shutil.copy(ROOT / "docs" / "reliability.md", document)
    command = [sys.executable, "-m", "benchmarks.reliability", "--comfyui", "not used", "intruder"]
    command += ["--count", "1", "--document", str(document)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if "no network namespace" in done.stderr:
        pytest.skip("this container may make no network namespace")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["problems"] == []
    assert found["chain: normal runs"] == found["fold: normal runs"] == 1
    assert "intruder --count 1`" in document.read_text()
