"""A worker's environment, and a program that cannot be started."""

from pathlib import Path

import pytest

from asyncdiff_core.errors import WorkerStartError
from asyncdiff_core.workers.members import cpu_threads_per_worker
from asyncdiff_core.workers.process import Launch, WorkerProcess, device_environment

CUDA, HIP = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("device", "base", "visible"),
    [
        ("cuda:0", {}, "0"),
        ("cuda:3", {}, "3"),
        ("cuda:0", {CUDA: "2,3"}, "2"),
        ("cuda:1", {CUDA: "2,3"}, "3"),
        ("cuda:1", {CUDA: "3,2"}, "2"),
        ("cuda:0", {CUDA: "GPU-8932f937,GPU-0"}, "GPU-8932f937"),
        ("cuda:1", {CUDA: "0, 5"}, "5"),
        ("cuda:1", {CUDA: ""}, "1"),
    ],
)
def test_a_worker_sees_one_gpu_and_calls_it_0(
    device: str, base: dict[str, str], visible: str
) -> None:
    """`device` counts among the GPUs that this process sees, not among all of the machine."""
    env, local = device_environment(device, {"HOME": "/root", **base}, {})
    assert local == "cuda:0"
    assert {k: v.strip() for k, v in env.items()} == {CUDA: visible}


def test_a_gpu_that_this_process_does_not_see_is_seen_by_its_worker() -> None:
    """ComfyUI on Windows hides all but one from itself."""
    env, local = device_environment("cuda:1", {CUDA: "0"}, {"cuda:1": "GPU-5bf7"})
    assert (env, local) == ({CUDA: "GPU-5bf7"}, "cuda:0")
    assert device_environment("cuda:0", {CUDA: "0"}, {"cuda:1": "GPU-5bf7"}) == (
        {CUDA: "0"},
        "cuda:0",
    )


def test_the_same_for_rocm() -> None:
    env, local = device_environment("cuda:1", {HIP: "4,6"}, {})
    assert local == "cuda:0" and env[HIP] == "6"


@pytest.mark.parametrize("base", [{}, {CUDA: "0,1"}, {HIP: "0"}])
def test_a_cpu_worker_sees_no_gpu(base: dict[str, str]) -> None:
    assert device_environment("cpu", base, {}) == ({CUDA: "", HIP: ""}, "cpu")


def test_other_devices_are_left_as_they_are() -> None:
    assert device_environment("mps:0", {CUDA: "0"}, {}) == ({}, "mps:0")


def test_the_environment_of_this_process_is_not_changed() -> None:
    base = {CUDA: "2,3", HIP: "1"}
    device_environment("cuda:0", base, {"cuda:1": "GPU-1"})
    assert base == {CUDA: "2,3", HIP: "1"}


def test_a_program_that_does_not_exist(tmp_path: Path) -> None:
    launch = Launch(python_path=(), cwd=str(tmp_path), python=str(tmp_path / "no-python"))
    with pytest.raises(WorkerStartError) as caught:
        WorkerProcess("worker 1", "cuda:1", launch, 1, tmp_path / "worker-1.log", {})
    for text in ("worker 1 on cuda:1", "could not be started", "no-python"):
        assert text in str(caught.value)


@pytest.mark.parametrize(("total", "num", "each"), [(8, 2, 4), (8, 3, 2), (2, 4, 1), (1, 1, 1)])
def test_workers_share_the_threads_evenly(
    monkeypatch: pytest.MonkeyPatch, total: int, num: int, each: int
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: total)
    assert cpu_threads_per_worker(("cpu",) * num) == each
