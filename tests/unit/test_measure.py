"""How fast a GPU counts, by what it is."""

from types import SimpleNamespace

import pytest
import torch

from asyncdiff_core.workers.measure import device_rate

CUDA = torch.device("cuda:0")


def a_gpu(monkeypatch: pytest.MonkeyPatch, **what: object) -> float:
    card = SimpleNamespace(**{"name": "a card", "gcnArchName": "", **what})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    name, rate = device_rate(CUDA)
    assert name == "a card"
    return rate


# Multiprocessors, boost clock in kHz, capability, and the TFLOP/s that its maker states (dense).
@pytest.mark.parametrize(
    ("number", "clock", "capability", "stated"),
    [
        (82, 1_695_000, (8, 6), 142),  # RTX 3090
        (128, 2_520_000, (8, 9), 330),  # RTX 4090
        (108, 1_410_000, (8, 0), 312),  # A100
        (132, 1_830_000, (9, 0), 989),  # H100
        (80, 1_530_000, (7, 0), 125),  # V100
    ],
)
def test_known_cards(
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    clock: int,
    capability: tuple[int, int],
    stated: int,
) -> None:
    major, minor = capability
    what = {"multi_processor_count": number, "clock_rate": clock, "major": major, "minor": minor}
    assert a_gpu(monkeypatch, **what) == pytest.approx(stated * 1e12, rel=0.02)


def test_a_card_that_is_newer_counts_as_the_newest_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    what = {"multi_processor_count": 100, "clock_rate": 2_000_000}
    newer = a_gpu(monkeypatch, **what, major=9, minor=5)
    assert newer == a_gpu(monkeypatch, **what, major=9, minor=0)


def test_a_torch_that_does_not_tell_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    assert a_gpu(monkeypatch, multi_processor_count=82, major=8, minor=6) > 1e13


def test_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    what = {"multi_processor_count": 304, "clock_rate": 2_100_000, "major": 9, "minor": 4}
    rate = a_gpu(monkeypatch, **what, gcnArchName="gfx942:sramecc+:xnack-")
    assert rate == pytest.approx(1307e12, rel=0.02)  # MI300X
    assert a_gpu(monkeypatch, **what, gcnArchName="gfx1030") < rate / 4


def test_the_cpu_counts_by_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    name, three = device_rate(torch.device("cpu"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert name == "cpu x3" and three == 3 * device_rate(torch.device("cpu"))[1]
