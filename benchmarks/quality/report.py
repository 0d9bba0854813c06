"""The laboratory's results as JSON, as a table and as plots."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from asyncdiff_core.algorithm.schedule import DEFAULT_WARM_UP

from .settings import CACHES, Setting, baselines, equal_time_steps

COLUMNS = (  # key, heading, format, whether more is better
    ("psnr", "PSNR (dB)", "{:.1f}", True),
    ("ssim", "SSIM", "{:.3f}", True),
    ("latent_psnr", "PSNR of the latent (dB)", "{:.1f}", True),
    ("latent_median", "of a picture, median", "{:.1f}", True),
    ("latent_worst", "worst", "{:.1f}", True),
    ("accuracy", "accuracy", "{:.1%}", True),
    ("frechet", "Fréchet distance", "{:.2f}", False),
    ("lpips", "LPIPS", "{:.3f}", False),
)
MARKERS = "os^Dv"


@dataclass
class Result:
    """What a setting did.

    Attributes:
        metrics: by the keys of COLUMNS; None where nothing differs from the full run.
        drift: see sampling.Drift.mean.
        measured_speedup: over the stock sampler on one of the devices, if it was measured.
    """

    setting: Setting
    ideal_speedup: float
    metrics: dict[str, float | None]
    drift: list[dict[str, float]] = field(default_factory=list)
    measured_speedup: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "setting": {"name": self.setting.name, **asdict(self.setting)},
            "num_devices": self.setting.num_devices,
        }


def table(results: Sequence[Result]) -> str:
    """All settings, in Markdown."""
    known = set().union(*(result.metrics for result in results))
    columns = [column for column in COLUMNS if column[0] in known]
    rows = [
        ["setting", "devices", "ideal", "measured", *(heading for _, heading, *_ in columns)],
        ["---"] * (4 + len(columns)),
    ]
    for result in results:
        measured = result.measured_speedup
        rows.append(
            [
                result.setting.name,
                str(result.setting.num_devices),
                f"{result.ideal_speedup:.2f}x",
                "" if measured is None else f"{measured:.2f}x",
                *(_cell(result.metrics.get(key), form) for key, _, form, _ in columns),
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _cell(value: float | None, form: str) -> str:
    return "equal" if value is None else form.format(value)


def equal_time_table(results: Sequence[Result], steps: int) -> str:
    """Each setting against the stock sampler with as many steps as fit its ideal time."""
    fewer = {r.setting.steps: r for r in results if r.setting.steps is not None}
    known = set().union(*(result.metrics for result in results))
    columns = [column for column in COLUMNS if column[0] in known]
    rows = [["setting", "steps", *(h for _, h, *_ in columns)], ["---"] * (2 + len(columns))]
    for result in results:
        setting = result.setting
        if setting.steps is not None or (setting.is_stock and not setting.cache):
            continue
        count = equal_time_steps(steps, result.ideal_speedup)
        cells = [setting.name, str(count)]
        for key, _, form, more_is_better in columns:
            ours, theirs = result.metrics.get(key), fewer[count].metrics.get(key)
            text = f"{_cell(ours, form)} / {_cell(theirs, form)}"
            cells.append(f"**{text}**" if _is_better(ours, theirs, more_is_better) else text)
        rows.append(cells)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _is_better(ours: float | None, theirs: float | None, more_is_better: bool) -> bool:
    if ours is None or theirs is None:
        return ours is None and theirs is not None
    return ours > theirs if more_is_better else ours < theirs


def plot_quality(results: Sequence[Result], title: str, path: Path) -> None:
    """Every measure against the ideal speed-up, and against the measured one where there is one."""
    known = set().union(*(result.metrics for result in results))
    columns = [c for c in COLUMNS if c[0] in known and "latent" not in c[0]]
    figure, grid = plt.subplots(1, len(columns), figsize=(5.2 * len(columns), 4.6), squeeze=False)
    for axes, (key, heading, _, more_is_better) in zip(grid[0], columns, strict=True):
        _plot_measure(axes, results, key)
        axes.set_xlabel("ideal speed-up")
        axes.set_title(f"{heading} ({'more' if more_is_better else 'less'} is better)", size=10)
        axes.grid(alpha=0.3)
    grid[0][0].legend(fontsize=7, ncols=2)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot_measure(axes: Any, results: Sequence[Result], key: str) -> None:
    def points(chosen: Sequence[Result]) -> list[list[float]]:
        pairs = ((r.ideal_speedup, r.metrics[key]) for r in chosen if r.metrics[key] is not None)
        return [list(axis) for axis in zip(*sorted(pairs), strict=True)] or [[], []]

    plain = [r for r in results if not r.setting.is_baseline and not r.setting.is_reference]
    axes.plot(
        *points([r for r in results if r.setting.steps is not None]),
        *("k--x",),
        label="fewer steps",
        lw=1,
    )
    for cache, marker in zip(CACHES, "12", strict=True):
        found = [r for r in results if r.setting.is_baseline and r.setting.cache == cache]
        if found:
            axes.plot(*points(found), marker=marker, color="gray", ls="--", label=cache, lw=1)

    def plan(result: Result) -> tuple[int, int, int, bool, bool, str]:
        setting = result.setting
        ways = setting.time_shift, setting.prediction, setting.cache or ""
        return setting.replicas, setting.stages, setting.stride, *ways

    for index, (name, group) in enumerate(itertools.groupby(sorted(plain, key=plan), plan)):
        chosen = list(group)
        replicas, stages, stride, shift, predicts, cache = name
        label = f"N={stages} S={stride}" + f" R={replicas}" * (replicas > 1) + " shift" * shift
        marker = MARKERS[index % len(MARKERS)]
        (line,) = axes.plot(
            *points(chosen),
            marker=marker,
            label=label + " draft" * predicts + f" + {cache}" * bool(cache),
            lw=2 if predicts else 1,
            ls="-" if predicts else ":",
            ms=4,
        )
        for result in chosen:
            value = result.metrics[key]
            if result.measured_speedup is not None and value is not None:
                axes.plot(
                    *(result.measured_speedup, value, marker),
                    color=line.get_color(),
                    mfc="none",
                    ms=9,
                )
    reference = [r for r in results if r.setting.is_reference]
    if reference:
        axes.plot(*points(reference), "r*", label="reference's schedule", ms=9)
    exact = [r for r in plain if r.metrics[key] is None]
    for result in exact:
        axes.axvline(result.ideal_speedup, color="tab:green", lw=1, label="CFG replicas: exact")


def plot_pictures(
    pictures: Mapping[Setting, np.ndarray], results: Sequence[Result], path: Path
) -> None:
    """The first pictures of the full run, and of each plan beside those of its baseline.

    Args:
        pictures: by setting, [batch, height, width, 3].
        results: of all settings, the full run's first.
        path: of the picture that is written.
    """
    full = results[0].setting
    speedups = {result.setting: result.ideal_speedup for result in results}
    rows = [full]
    for setting, speedup in speedups.items():
        if setting.warm_up == DEFAULT_WARM_UP and not (
            setting.is_stock or setting.is_reference or setting.cache
        ):
            rows += [setting, *baselines([speedup], full.steps or 1)]
    columns = len(pictures[full])
    height, width = pictures[full].shape[1:3]
    size = (1.2 + columns * width / height, len(rows))
    figure, grid = plt.subplots(len(rows), columns, figsize=size, squeeze=False)
    for setting, axes_row in zip(rows, grid, strict=True):
        for axes, picture in zip(axes_row, pictures[setting], strict=True):
            axes.imshow(picture)
            axes.set(xticks=[], yticks=[])
        label = f"{setting.name}\n{speedups[setting]:.2f}x"
        axes_row[0].set_ylabel(label, rotation=0, ha="right", va="center", size=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def plot_drift(results: Sequence[Result], title: str, path: Path) -> None:
    """The drift of what crosses the cuts, over the evaluations of a run."""
    chosen = [r for r in results if r.drift and not r.setting.is_reference]
    at_default = [r for r in chosen if r.setting.warm_up == DEFAULT_WARM_UP]
    chosen = [r for r in at_default or chosen if not r.setting.time_shift]
    figure, axes = plt.subplots(figsize=(7, 4.4))
    for index, result in enumerate(chosen):
        for stage in sorted({int(entry["stage"]) for entry in result.drift}):
            entries = [e for e in result.drift if e["stage"] == stage]
            axes.plot(
                [e["evaluation"] for e in entries],
                [e["drift"] for e in entries],
                color=f"C{index}",
                alpha=1 - 0.22 * (stage - 1),
                marker=MARKERS[(stage - 1) % len(MARKERS)],
                ms=3,
                lw=1,
                label=f"{result.setting.name}, into stage {stage + 1}",
            )
    axes.set_yscale("log")
    axes.set_xlabel("evaluation")
    axes.set_ylabel("relative L2, stale to fresh")
    axes.set_title(title, size=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
