"""The laboratory's settings, measures and tables."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncdiff_core.planning.plan import ParallelPlan
from asyncdiff_core.planning.planner import predicted_speedup
from benchmarks.quality import metrics, report
from benchmarks.quality.report import Result
from benchmarks.quality.settings import (
    Setting,
    baselines,
    default_settings,
    equal_time_steps,
)


@pytest.mark.parametrize("setting", [*default_settings(), Setting(steps=12)])
def test_a_name_says_everything(setting: Setting) -> None:
    assert Setting.parse(setting.name) == setting


BAD_CACHES = "20 steps + LazyCache 0.2", " + LazyCache 0.2", "N2 S1 w3 + LazyCache"


@pytest.mark.parametrize(
    "name", ["", "N2", "N2 S1", "N2 S1 w", "S1 N2 w3", "steps", "N2 S1 w3 x", *BAD_CACHES]
)
def test_a_wrong_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not like 'N2 S1 w3'"):
        Setting.parse(name)


def test_ideal_speedup_is_the_papers_formula() -> None:
    assert Setting(2, warm_up=1).ideal_speedup(50) == pytest.approx(50 / (1 + 49 / 2))
    assert Setting(3, 2, warm_up=2).ideal_speedup(50) == pytest.approx(50 / (2 + 24 / 3))
    assert Setting(replicas=2).ideal_speedup(30, num_conds=2) == 2.0
    assert Setting(replicas=2).ideal_speedup(30, num_conds=1) == 1.0
    assert Setting(steps=10).ideal_speedup(30) == 3.0
    assert Setting(2, warm_up=40).ideal_speedup(30) == 1.0
    # A cache left out 10 of 30 evaluations: two synchronous ones, and 18 at half the time.
    assert Setting(2, warm_up=3, cache="LazyCache").ideal_speedup(30, 2, 2, 20) == 30 / 11


@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 2), st.integers(1, 12), st.integers(1, 12)
)
def test_ideal_speedup_is_what_the_planner_predicts_of_even_stages(
    stages: int, stride: int, replicas: int, warm_up: int, rounds: int
) -> None:
    setting = Setting(stages, stride, replicas, warm_up)
    steps = warm_up + rounds * stride
    plan = ParallelPlan(("cpu",) * setting.num_devices, stages, replicas, stride)
    predicted = predicted_speedup(
        plan, num_conds=2, steps=steps, num_sync=warm_up, costs=[1.0] * 12
    )
    assert setting.ideal_speedup(steps, 2) == pytest.approx(predicted)


@given(st.sampled_from(default_settings()), st.integers(12, 60))
def test_equal_time_favours_the_baseline(setting: Setting, steps: int) -> None:
    ours = setting.ideal_speedup(steps, 2)
    count = equal_time_steps(steps, ours)
    assert steps / count <= ours * (1 + 1e-6)
    assert steps / (count - 1) > ours if count > 1 else True


def test_baselines_cover_every_setting() -> None:
    speedups = [setting.ideal_speedup(30) for setting in default_settings()]
    counts = [setting.steps for setting in baselines(speedups, 30)]
    assert counts == sorted({equal_time_steps(30, speedup) for speedup in speedups}, reverse=True)


def test_psnr_and_ssim() -> None:
    stock = np.zeros((2, 16, 16, 3))
    ours = stock + 0.1
    assert metrics.psnr(stock, stock, 1.0) is None
    assert metrics.psnr(ours, stock, 1.0) == pytest.approx(20.0)
    assert metrics.ssim(stock, stock) == pytest.approx(1.0)
    assert metrics.ssim(ours, stock) < 0.9


def test_relative_distance() -> None:
    fresh = {3: (torch.tensor([3.0, 4.0]), None), 5: torch.zeros(2)}
    stale = {3: (torch.tensor([3.0, 3.0]), None), 5: torch.zeros(2)}
    assert metrics.relative_distance(stale, fresh) == pytest.approx(1 / 5)
    assert metrics.relative_distance(fresh, fresh) == 0


class Means(torch.nn.Module):
    """Features by which a test can work the distance out: the mean of each channel."""

    num_features = 3

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures.float().mean((2, 3))


def test_frechet_distance() -> None:
    rng = np.random.default_rng(0)
    real = rng.random((400, 4, 4, 3)) * 0.5
    distance = metrics.FrechetDistance(Means(), real)
    assert distance(real) == pytest.approx(0, abs=1e-3)
    # The same spread, moved by 51 of 255 in each of three channels.
    assert distance(real + 0.2) == pytest.approx(3 * 51**2, rel=1e-2)


def result(setting: Setting, psnr: float | None, frechet: float) -> Result:
    ideal = setting.ideal_speedup(30)
    return Result(setting, ideal, {"psnr": psnr, "frechet": frechet}, measured_speedup=1.7)


def test_tables() -> None:
    ours, replicas = Setting(2, warm_up=3), Setting(replicas=2)
    count = equal_time_steps(30, ours.ideal_speedup(30))
    results = [
        result(ours, 30.0, 2.0),
        result(replicas, None, 1.0),
        result(Setting(steps=count), 20.0, 1.0),
    ]
    lines = report.table(results).splitlines()
    assert lines[2] == "| N2 S1 w3 | 2 | 1.82x | 1.70x | 30.0 | 2.00 |"
    assert lines[3] == "| N1 S1 R2 w1 | 2 | 2.00x | 1.70x | equal | 1.00 |"
    equal_time = report.equal_time_table(results, 30).splitlines()
    # More PSNR is better and in bold; more distance is worse.
    assert equal_time[2:] == [f"| N2 S1 w3 | {count} | **30.0 / 20.0** | 2.00 / 1.00 |"]


def test_plots(tmp_path) -> None:
    drift = [{"stage": s, "evaluation": e, "drift": 0.1 * s} for s in (1, 2) for e in range(5)]
    speedups = [setting.ideal_speedup(30) for setting in default_settings()]
    settings = [*default_settings(), *baselines(speedups, 30)]
    results = [result(s, None if s.is_stock and not s.steps else 20.0, 1.0) for s in settings]
    for each in results:
        each.drift = drift
    report.plot_quality(results, "title", tmp_path / "quality.png")
    report.plot_drift(results, "title", tmp_path / "drift.png")
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("quality.png", "drift.png"))
    assert math.isfinite(results[0].as_dict()["ideal_speedup"])
