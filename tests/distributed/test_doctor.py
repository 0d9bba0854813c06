"""The doctor on workers that are well, and on one that is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.doctor.__main__ import Doctor

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("every_backend")


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.doctor", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_all_is_well(tmp_path: Path) -> None:
    done = doctor("--devices", "cpu,cpu,cpu", "--out", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ALL RIGHT: 3 workers, connected by ring." in done.stdout
    found: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
    for backend in ("ring", "socket"):
        links = found["links"][backend]
        assert links["trouble"] == ""
        ends = [(link["source"], link["target"]) for link in links["measured"]]
        assert ends == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
        assert all(link["latency"] > 0 < link["bandwidth"] for link in links["measured"])
    for stages in (2, 3):
        assert found[f"stages_{stages}"]["is_exact"]
        assert len(found[f"stages_{stages}"]["busy"]) == stages
    assert found["overhead"] > 0


@pytest.mark.parametrize(
    ("kind", "code", "texts"),
    [
        ("slow", 0, ["between 0 and 1 a message takes ring", "worker 1 on cpu takes"]),
        ("corrupt", 0, ["what came from worker 1 is not what it sent", "connected by socket"]),
        (
            "missing",
            1,
            ["NOT RIGHT: no backend connects", "worker 1 ended with status 3", "did not start"],
        ),
    ],
)
def test_one_worker_is_not(kind: str, code: int, texts: list[str]) -> None:
    done = doctor("--devices", "cpu,cpu", "--sabotage", f"1:{kind}")
    assert done.returncode == code, done.stdout + done.stderr
    for text in texts:
        assert text in done.stdout


def test_on_windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Which gives no descriptors to a program: that is said, and is no trouble."""
    monkeypatch.setattr(sys, "platform", "win32")
    patient = Doctor(("cpu", "cpu"), ("ring", "socket"))
    patient._examine_links(tmp_path)
    assert patient.troubles == [] and "not measured on Windows" in patient.remarks[0]


def test_one_device() -> None:
    assert "ALL RIGHT: a single device" in doctor("--devices", "cpu").stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--devices", "gpu:7"], "unknown device 'gpu:7'"),
        (["--devices", ""], "unknown device"),
        (["--sabotage", "1:tired"], "is not like 1:slow"),
        (["--sabotage", "x"], "is not like 1:slow"),
    ],
)
def test_what_makes_no_sense(arguments: list[str], text: str) -> None:
    done = doctor(*arguments)
    assert done.returncode and text in done.stderr and "Traceback" not in done.stderr
