"""Which backend serves which devices."""

import sys

import pytest
import torch.distributed as dist

from asyncdiff_core.errors import PlanError
from asyncdiff_core.links.transport import backends_for

GPUS = ("cuda:0", "cuda:1")


@pytest.fixture(autouse=True)
def linux_with_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)


@pytest.mark.parametrize(
    ("devices", "backend"),
    [
        (GPUS, "nccl"),
        (("cuda:0",), "nccl"),
        (("cuda:0", "cuda:0"), "ring"),
        (("cpu", "cpu"), "ring"),
        (("cuda:0", "cpu"), "ring"),
        (("mps:0",), "ring"),
    ],
)
def test_auto(devices: tuple[str, ...], backend: str) -> None:
    assert backends_for(devices)[0] == backend
    assert backends_for(devices, "socket") == ("socket",)
    assert backends_for(devices, "ring") == ("ring",)


def test_nccl_where_it_can_serve() -> None:
    assert backends_for(GPUS, "nccl") == ("nccl",)


@pytest.mark.parametrize(
    ("devices", "texts"),
    [
        (("cuda:0", "cuda:1", "cuda:0"), ("one worker per GPU", "cuda:0 is listed twice")),
        (("cuda:0", "cpu"), ("CUDA devices only", "cuda:0,cpu")),
        (("cpu", "cpu"), ("CUDA devices only", "cpu,cpu")),
    ],
)
def test_nccl_where_it_cannot(devices: tuple[str, ...], texts: tuple[str, ...]) -> None:
    with pytest.raises(PlanError) as caught:
        backends_for(devices, "nccl")
    for text in (*texts, "leave ASYNCDIFF_BACKEND at auto"):
        assert text in str(caught.value)


def test_no_nccl_in_this_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
    assert backends_for(GPUS) == ("ring", "socket")
    with pytest.raises(PlanError, match="this build of PyTorch has no NCCL"):
        backends_for(GPUS, "nccl")


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_nccl_is_for_linux(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert backends_for(GPUS) == ("ring", "socket")
    with pytest.raises(PlanError, match="no NCCL"):
        backends_for(GPUS, "nccl")


def test_a_backend_that_does_not_exist() -> None:
    with pytest.raises(PlanError, match="is 'mpi'; use auto, ring, socket or nccl"):
        backends_for(GPUS, "mpi")
