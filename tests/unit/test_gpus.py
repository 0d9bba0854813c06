"""The GPUs that NVML tells of, by a stand-in for its Python module."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from asyncdiff_core.workers import gpus
from asyncdiff_core.workers.gpus import Gpu, list_gpus, usable_gpus

ONE, OTHER = Gpu("GPU-1", "RTX 3090", 24, 20), Gpu("GPU-2", "RTX 4090", 24, 24)


class NVMLError(Exception):
    pass


def nvml(*gpus: Gpu, fails: str = "", text: Any = str) -> ModuleType:
    """What `import pynvml` finds. One of its functions, `fails`, fails."""
    module = ModuleType("pynvml")
    module.is_open = False  # type: ignore[attr-defined]

    def begin() -> None:
        module.is_open = True  # type: ignore[attr-defined]

    def end() -> None:
        module.is_open = False  # type: ignore[attr-defined]

    def memory(gpu: Gpu) -> SimpleNamespace:
        return SimpleNamespace(total=gpu.memory_bytes, free=gpu.free_bytes)

    functions = {
        "nvmlInit": begin,
        "nvmlShutdown": end,
        "nvmlDeviceGetCount": lambda: len(gpus),
        "nvmlDeviceGetHandleByIndex": gpus.__getitem__,
        "nvmlDeviceGetUUID": lambda gpu: text(gpu.uuid),
        "nvmlDeviceGetName": lambda gpu: text(gpu.title),
        "nvmlDeviceGetMemoryInfo": memory,
    }

    def fail(*_: Any) -> None:
        raise NVMLError("driver/library version mismatch")

    for name, function in functions.items():
        setattr(module, name, fail if name == fails else function)
    module.NVMLError = NVMLError  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize("text", [str, str.encode])
def test_what_it_tells(monkeypatch: pytest.MonkeyPatch, text: Any) -> None:
    module = nvml(ONE, OTHER, text=text)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert list_gpus() == (ONE, OTHER)
    assert not module.is_open


@pytest.mark.parametrize(
    "fails",
    ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetMemoryInfo"],
)
def test_where_it_fails_nothing_is_known(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    module = nvml(ONE, OTHER, fails=fails)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert list_gpus() == ()
    assert not module.is_open


def test_without_the_module_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert list_gpus() == ()


def test_what_is_not_known_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The panel asks every second."""
    gpus._say.cache_clear()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    for _ in range(3):
        list_gpus()
    monkeypatch.setitem(sys.modules, "pynvml", nvml(ONE, fails="nvmlDeviceGetName"))
    for _ in range(3):
        list_gpus()
    assert caplog.text.count("it is not known how much of GPUs is in use") == 2


def test_this_machine() -> None:
    """The real module, whether or not there is a driver."""
    assert all(gpu.uuid and gpu.title and gpu.free_bytes is not None for gpu in list_gpus())


def seen(gpu: Gpu) -> Gpu:
    """As CUDA tells of it."""
    return Gpu(gpu.uuid, gpu.title, gpu.memory_bytes, None)


def test_names_are_in_the_order_of_this_process() -> None:
    """NVML numbers by the bus, CUDA puts the fastest first."""
    gpus = usable_gpus([seen(OTHER), seen(ONE)], [ONE, OTHER], hides_others=False)
    assert gpus == {"cuda:0": OTHER, "cuda:1": ONE}


def test_what_the_user_has_hidden_is_not_used() -> None:
    assert usable_gpus([seen(OTHER)], [ONE, OTHER], hides_others=False) == {"cuda:0": OTHER}


def test_what_comfyui_hides_from_itself_is_used() -> None:
    gpus = usable_gpus([seen(OTHER)], [ONE, OTHER], hides_others=True)
    assert gpus == {"cuda:0": OTHER, "cuda:1": ONE}


def test_what_nvml_does_not_know_is_used_all_the_same() -> None:
    """AMD's, parts of a GPU (MIG), and where there is no NVML."""
    part = Gpu("GPU-", "MIG 1g.5gb", 5, None)
    assert usable_gpus([part, seen(ONE)], [], hides_others=False) == {
        "cuda:0": part,
        "cuda:1": seen(ONE),
    }
