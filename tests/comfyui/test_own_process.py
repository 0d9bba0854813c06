"""ComfyUI's own classes without its server, in a process of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.comfy_server import REPO_ROOT
from harness.processes import run

FOLDER = Path(__file__).parent / "own_process"


@pytest.mark.timeout(900)
def test_reduced_sdxl(comfyui_path: Path) -> None:
    """SDXL's UNet: N = 2, 3, 4, batched and unbatched CFG, group against oracle and stock."""
    held = run("sdxl_parity.py", comfyui_path, REPO_ROOT, timeout=850)
    assert len(held) == 2 * (3 * 5) + 2 + 7 * 4 + 1 + 4 * 2 + 2 + 1
    assert [name for name, value in held.items() if not value] == []


def test_training_is_resumable_and_seeded(comfyui_path: Path, tmp_path: Path) -> None:
    held = run(FOLDER / "short_training.py", comfyui_path, REPO_ROOT, tmp_path, timeout=280)
    assert len(held) == 6
    assert [name for name, value in held.items() if not value] == []


@pytest.mark.timeout(600)
def test_workers_on_a_few_architectures(comfyui_path: Path) -> None:
    """What the links of each kind of layout carry, between real workers; LoRA hooks."""
    held = run(FOLDER / "group_parity.py", comfyui_path, REPO_ROOT, timeout=580)
    assert len(held) == 7 * 5 + 1 + 4
    assert [name for name, value in held.items() if not value] == []


def test_what_is_around_diffusion_models(comfyui_path: Path) -> None:
    """Real parts around skeletons, weights that tell only their looks, changes that are seen."""
    held = run(FOLDER / "around_the_model.py", comfyui_path, REPO_ROOT, timeout=280)
    assert sum(name.startswith("around ") for name in held) > 60
    assert [name for name, value in held.items() if not value] == []


def test_what_a_patch_keeps_from_block_to_block(comfyui_path: Path) -> None:
    """Z-Image's Fun ControlNets, cut at every place."""
    held = run(FOLDER / "flowing.py", comfyui_path, REPO_ROOT, timeout=280)
    assert len(held) == 5 * (2 + 3 * 7)
    assert [name for name, value in held.items() if not value] == []


def test_gpus_of_this_machine(comfyui_path: Path) -> None:
    """ComfyUI's flags, Windows' one visible GPU, CUDA's order of GPUs."""
    held = run(FOLDER / "machine.py", comfyui_path, REPO_ROOT, timeout=280)
    assert len(held) == 14
    assert [name for name, value in held.items() if not value] == []


def test_weights_that_stay_in_the_file(comfyui_path: Path, tmp_path: Path) -> None:
    """Stages that may hold only a part of their weights: the same bits, and memory as allowed."""
    held = run(FOLDER / "streaming.py", comfyui_path, REPO_ROOT, tmp_path, timeout=280)
    assert len(held) == 3 + 3 * 7 + 4 * 7 + 4
    assert [name for name, value in held.items() if not value] == []


def test_what_is_given_back_and_tried_again(comfyui_path: Path) -> None:
    """Pressure on ComfyUI's own device, and a device that runs out of memory."""
    held = run(FOLDER / "pressure.py", comfyui_path, REPO_ROOT, timeout=280)
    assert len(held) == 28
    assert [name for name, value in held.items() if not value] == []
