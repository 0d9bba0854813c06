"""Small checkpoints of many families, in the stock format: ComfyUI's own detection loads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compatibility import version_of
from dev import DEFAULT_HOST
from harness.comfy_server import REPO_ROOT, ComfyServer
from harness.processes import run
from harness.stock_files import KINDS, PACKED, compare, write

FOLDER = Path(__file__).parent / "own_process"
NAMES = (
    *("sd2", "vega", "flux", "flux2", "hunyuan-video", "hunyuan-video-1.5", "ltx", "ltx-av"),
    *("wan-i2v", "vace", "cogvideox", "kandinsky", "krea2", "joyimage", "hunyuan3d"),
    *("hunyuan3d-2.1", "lens"),
)


def kind_of(name: str) -> str:
    """Each family in one of the formats, so that each is there.

    All of them in all: `python3 dev.py python -m benchmarks.compatibility`.
    """
    first = NAMES.index(name)
    kinds = (KINDS[(first + n) % len(KINDS)] for n in range(len(KINDS)))
    return next(kind for kind in kinds if kind not in PACKED.get(name, ()))


@pytest.fixture(scope="module")
def families(server: ComfyServer) -> dict[str, Any]:
    """What stock_format.py wrote into the server's folder, by name."""
    return write(server, {name: ["fp32", kind_of(name)] for name in NAMES})


@pytest.fixture(autouse=True)
def released(server: ComfyServer) -> Iterator[None]:
    """The next family gets the memory of the last one."""
    yield
    server.post("/asyncdiff/release", {})


@pytest.mark.parametrize("name", NAMES)
def test_equals_stock(name: str, server: ComfyServer, families: dict[str, Any]) -> None:
    family = families[name]
    if "missing" in family:
        version = version_of(server.comfyui)
        assert version != DEFAULT_HOST
        pytest.skip(f"ComfyUI {version} has no {family['class']}")
    kind = kind_of(name)
    if kind not in family["formats"]:
        version = version_of(server.comfyui)
        assert version != DEFAULT_HOST
        pytest.skip(f"ComfyUI {version} does not know {kind}")
    before = len(server.log_text())
    compare(server, name, family, kind)
    assert not complaints(server.log_text()[before:])


def complaints(log: str) -> list[str]:
    """Lines that look like a fault. ComfyUI says of itself what it had no use for."""
    signs = (
        "warning",
        "error",
        "missing",
        "not loaded",
        "unexpected",
        "uninitialized",
        "traceback",
    )
    lines = (line for line in log.splitlines() if any(sign in line.lower() for sign in signs))
    return [line for line in lines if "unet unexpected" not in line]


@pytest.mark.parametrize("what", ["loaded by skeleton and stages"])
def test_every_file_is(what: str, server: ComfyServer, families: dict[str, Any]) -> None:
    """Key by key and bit by bit, see format_parity.py."""
    script = FOLDER / "format_parity.py"
    came = run(script, server.comfyui, REPO_ROOT, server.models, timeout=600)
    files = [(name, kind, held) for name, kinds in came.items() for kind, held in kinds.items()]
    assert len(files) >= 2 * len([f for f in families.values() if "missing" not in f]) - 1
    assert [file for file in files if not all(v is True for v in file[2].values())] == []


def test_no_file_is_left_out(families: dict[str, Any]) -> None:
    assert set(NAMES) == set(families)


def test_every_format_is_tried(families: dict[str, Any]) -> None:
    kinds = {kind_of(name) for name in NAMES if "missing" not in families[name]}
    assert kinds == set(KINDS)
