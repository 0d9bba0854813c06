"""`dev.py quality` as its user calls it, on small models. In a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import checkpoints

REPO_ROOT = Path(__file__).resolve().parents[2]


def quality(comfyui: Path, out: Path, *arguments: str) -> dict[str, Any]:
    """What the laboratory measured, by the name of the setting."""
    command = [sys.executable, "-m", "benchmarks.quality", "--out", str(out), *arguments]
    environment = {**os.environ, "COMFYUI_PATH": str(comfyui)}
    subprocess.run(command, cwd=REPO_ROOT, env=environment, check=True, timeout=300)
    for name in ("quality.md", "quality.png", "drift.png"):
        assert (out / name).stat().st_size > 0
    results = json.loads((out / "quality.json").read_text())["results"]
    return {result["setting"]["name"]: result for result in results}


def test_demo_model(comfyui_path: Path, tmp_path: Path) -> None:
    names = ("N2 S1 w5", "N2 S1 w2", "N2 S1 R2 w2", "N1 S1 R2 w1")
    names += ("N3 S2 w2", "N3 S2 w2 reference", "N3 S2 w1", "N3 S2 w1 reference")
    names += ("LazyCache 1", "LazyCache 0", "EasyCache 1")
    found = quality(
        *(comfyui_path, tmp_path, "--num-prompts", "3", "--steps", "5"),
        *("--settings", *names),
    )
    full, early = found["N2 S1 w5"], found["N2 S1 w2"]
    assert full["metrics"]["psnr"] is None and not full["drift"]  # equal, and never stale
    assert early["metrics"]["latent_psnr"] > 0
    assert [(e["stage"], e["evaluation"]) for e in early["drift"]] == [(1, 2), (1, 3), (1, 4)]
    assert all(0 < entry["drift"] < 2 for entry in early["drift"])
    # Replicas change how conds are batched, and nothing else.
    assert found["N1 S1 R2 w1"]["metrics"]["ssim"] > 0.999
    near = found["N2 S1 R2 w2"]["metrics"]["psnr"]
    assert near == pytest.approx(early["metrics"]["psnr"], abs=0.5)
    # The reference's schedule differs after an even warm-up, and only there.
    ours, theirs = found["N3 S2 w2"], found["N3 S2 w2 reference"]
    assert ours["metrics"]["psnr"] != theirs["metrics"]["psnr"]
    assert found["N3 S2 w1"]["metrics"] == found["N3 S2 w1 reference"]["metrics"]
    # Caches are as fast as they leave evaluations out, all of them or none of the 5.
    assert found["LazyCache 0"]["ideal_speedup"] == 1.0
    assert found["LazyCache 0"]["metrics"]["psnr"] is None
    for name in ("LazyCache 1", "EasyCache 1"):
        left = 5 / found[name]["ideal_speedup"]
        assert 1 <= left < 5 and left == pytest.approx(round(left))
        assert found[name]["metrics"]["psnr"] is not None
    # Each setting has its baseline of equal time.
    assert {"3 steps", "4 steps"} <= found.keys()


def test_checkpoint(comfyui_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    checkpoints.write_sd15(path)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a lighthouse\n\na cat\n")
    found = quality(
        *(comfyui_path, tmp_path / "out", "--checkpoint", str(path), "--prompts", str(prompts)),
        *("--size", "128x128", "--steps", "4", "--settings", "N2 S1 w4", "N2 S1 w1"),
        *("--measure", "cpu,cpu"),
    )
    assert found["N2 S1 w1"]["measured_speedup"] > 0
    assert found["N2 S1 w4"]["metrics"]["psnr"] is None
    assert found["N2 S1 w1"]["metrics"]["psnr"] > 0
    assert "accuracy" not in found["N2 S1 w1"]["metrics"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "nowhere.safetensors", "--prompts", "README.md"], "is no file"),
        (["--checkpoint", "README.md"], "--checkpoint needs --prompts"),
        (["--settings", "N2"], "is not like 'N2 S1 w3'"),
        (["--size", "big"], "is not like 512x512"),
        (["--steps", "1"], "two steps at least"),
    ],
)
def test_bad_arguments(comfyui_path: Path, arguments: list[str], message: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.quality", *arguments],
        cwd=REPO_ROOT,
        env={**os.environ, "COMFYUI_PATH": str(comfyui_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 2 and message in run.stderr
