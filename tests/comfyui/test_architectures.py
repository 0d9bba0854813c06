"""Every layout, on tiny random models of ComfyUI's own classes, in a process of its own."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from asyncdiff_core.algorithm.trunk import TrunkLayout
from asyncdiff_core.comfyui.model.layouts import LAYOUTS
from benchmarks.compatibility import version_of
from dev import DEFAULT_HOST
from harness.comfy_server import REPO_ROOT
from harness.own_process.architecture_parity import PAIRED
from harness.processes import run

COMPARISONS = {
    "cut anywhere",
    *(f"N={stages}" for stages in (2, 3, 4)),
    *(f"N={stages} async" for stages in (2, 3, 4)),
    "async differs",
}


@pytest.mark.timeout(600)
def test_stages_equal_the_plain_forward(comfyui_path: Path) -> None:
    """Full warm-up equals the plain forward at every cut, async equals what the algorithm says."""
    report: dict[str, Any] = run("architecture_parity.py", comfyui_path, REPO_ROOT, timeout=580)
    errors = {label: row["error"] for label, row in report.items() if "error" in row}
    assert errors == {}
    assert {row["class"] for row in report.values()} == set(LAYOUTS)
    missing = {label for label in report if "missing" in report[label]}
    if old := {label for label in missing if "newer" not in report[label]}:
        version = version_of(comfyui_path)
        assert version != DEFAULT_HOST, old
        warnings.warn(f"not in ComfyUI {version}, and so not tried: {old}", stacklevel=1)
    report = {label: row for label, row in report.items() if label not in missing}
    for label, row in report.items():
        layout = LAYOUTS[row["class"]]
        more = {"control residuals"} if layout.control else set()
        more |= {"folded anywhere"} if layout.skips else set()
        more |= {"latents apart"} if label not in PAIRED else set()
        assert set(row["held"]) == COMPARISONS | more, label
        failed = [name for name, value in row["held"].items() if value is not True]
        assert failed == [], f"{label}: {failed}"
    # Without their layouts: what passes the check is right, and most of what is a pipeline passes.
    guesses = {label: row["guess"] for label, row in report.items()}
    assert "wrong" not in guesses.values()
    passed = {label for label, guess in guesses.items() if guess == "passes"}
    refused = [guess for guess in guesses.values() if guess != "passes"]
    assert len(passed) >= 25
    assert all("cannot be spread" in guess for guess in refused)
    layouts = [LAYOUTS[report[label]["class"]] for label in passed]
    assert [
        layout for layout in layouts if layout != TrunkLayout(layout.blocks, control=layout.control)
    ] == []
