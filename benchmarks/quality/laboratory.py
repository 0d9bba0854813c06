"""A subject under many settings: what came out, as files."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import metrics, report
from .report import Result
from .sampling import Bench, Drift, Sampler
from .settings import Setting, baselines, default_settings
from .subjects import Checkpoint, Shapes, Subject
from .timing import measured_speedups

SHOWN = 12  # pictures
STARTED = time.monotonic()


class Laboratory:
    """A subject, the settings to try, and what came out so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out: Path = options.out
        self.subject = make_subject(options)
        self.bench = Bench(self.subject.model)
        self.shown: dict[Setting, np.ndarray] = {}  # a few pictures of each
        self.num_conds = 1 if self.subject.sampler.cfg == 1 else 2
        chosen = options.settings or [
            setting
            for setting in default_settings()
            if setting.stages <= self.bench.num_units and setting.replicas <= self.num_conds
        ]
        self.settings = list(chosen)

    def run(self) -> None:
        """Sample everything, and write the results."""
        self.out.mkdir(parents=True, exist_ok=True)
        with torch.inference_mode():
            say(f"{self.subject.name}: the full run, {self.options.steps} steps")
            self.stock = self._sample(Setting(steps=self.options.steps))
            self.stock_rows = self.bench.num_rows
            results = [self._full_run()]
            results += map(self._try, self.settings)
            # For each, the stock sampler with as many steps as fit its ideal time.
            tried = [r for r in results if r.setting.cache or not r.setting.is_stock]
            faster = [r.ideal_speedup for r in tried]
            results += map(self._try, baselines(faster, self.options.steps))
            if self.options.measure:
                self._measure(results)
        title = (
            f"{self.subject.name}, {len(self.subject.prompts)} pictures, "
            f"{self.options.sampler}, {self.options.steps} steps"
        )
        (self.out / "quality.json").write_text(json.dumps(self._as_json(results), indent=1) + "\n")
        steps = self.options.steps
        (self.out / "quality.md").write_text(
            f"# {title}\n\n{report.table(results)}\n"
            "## At equal ideal time: AsyncDiff / the stock sampler with fewer steps\n\n"
            f"{report.equal_time_table(results, steps)}"
        )
        report.plot_quality(results, title, self.out / "quality.png")
        report.plot_pictures(self.shown, results, self.out / "pictures.png")
        if any(result.drift for result in results):
            report.plot_drift(results, title, self.out / "drift.png")
        print(f"\n{report.table(results)}\nTables, plots and quality.json are in {self.out}")

    def _full_run(self) -> Result:
        extra = self.subject.judge(self.stock["pictures"], self.stock["pictures"])
        same = dict.fromkeys(("psnr", "ssim", "latent_psnr", "latent_median", "latent_worst"))
        metrics = {**same, **extra}
        return Result(Setting(steps=self.options.steps), 1.0, metrics)

    def _try(self, setting: Setting) -> Result:
        drift = Drift()
        self.bench.num_rows = 0
        found = self._sample(setting, drift)
        stock = self.stock
        latents = stock["latents"]
        values = {
            "psnr": metrics.psnr(found["pictures"], stock["pictures"], 1.0),
            "ssim": metrics.ssim(found["pictures"], stock["pictures"]),
            **metrics.latent_psnr(found["latents"], latents),
            **self.subject.judge(found["pictures"], stock["pictures"]),
        }
        steps, num_sync, num_done = self.options.steps, None, None
        if setting.cache and not setting.is_stock:
            # Of each batch: what a cache has left of the evaluations.
            num_sync = drift.num_sync / self.num_batches
            num_done = drift.num_evaluations / self.num_batches
        elif setting.tolerance and drift.num_evaluations:
            num_sync = steps * drift.num_sync / drift.num_evaluations
        ideal = setting.ideal_speedup(steps, self.num_conds, num_sync, num_done)
        if setting.cache and setting.is_stock:
            ideal = self.stock_rows / self.bench.num_rows
        figures = ", ".join(f"{k} {v:.3g}" for k, v in values.items() if v is not None)
        say(f"{setting.name}, {ideal:.2f}x: {figures or 'equal'}")
        return Result(setting, ideal, values, drift.mean())

    def _sample(self, setting: Setting, drift: Drift | None = None) -> dict[str, Any]:
        """Latents and pictures of every batch."""
        latents, pictures = [], []
        self.num_batches = 0
        for batch in self.subject.batches():
            with self.bench.under(setting, drift or Drift()) as model:
                steps = setting.steps or self.options.steps
                latent = self.subject.sampler.sample(model, *batch, steps=steps)
            self.num_batches += 1
            latents.append(latent.float().cpu().numpy())
            pictures.append(self.subject.decode(latent))
        self.shown[setting] = np.concatenate(pictures)[:SHOWN]
        return {"latents": np.concatenate(latents), "pictures": np.concatenate(pictures)}

    def _measure(self, results: list[Result]) -> None:
        devices = self.options.measure.split(",")
        timed = [r for r in results if 1 < r.setting.num_devices <= len(devices)]
        timed = [r for r in timed if not (r.setting.is_reference or r.setting.cache)]
        # Loaded anew: the oracle has replaced the units of the one that it evaluates.
        subject = make_subject(self.options)
        speedups = measured_speedups(subject, [r.setting for r in timed], devices)
        for result, speedup in zip(timed, speedups, strict=True):
            say(f"{result.setting.name}: {speedup:.2f}x measured, {result.ideal_speedup:.2f} ideal")
            result.measured_speedup = speedup

    def _as_json(self, results: list[Result]) -> dict[str, Any]:
        options = self.options
        return {
            "subject": self.subject.name,
            "pictures": len(self.subject.prompts),
            "steps": options.steps,
            "cfg": self.subject.sampler.cfg,
            "sampler": options.sampler,
            "scheduler": options.scheduler,
            "measured_on": options.measure,
            "results": [result.as_dict() for result in results],
        }


def make_subject(options: argparse.Namespace) -> Subject:
    """What the command line asks to sample."""
    cfg = options.cfg or (7.0 if options.checkpoint else 4.0)
    sampler = Sampler(options.sampler, options.scheduler, options.steps, cfg)
    if not options.checkpoint:
        return Shapes(sampler, options.num_prompts, options.seeds, skip=options.skip_prompts)
    lines = options.prompts.read_text(encoding="utf-8").splitlines()
    prompts = [line.strip() for line in lines if line.strip()]
    prompts = prompts[options.skip_prompts :][: options.num_prompts]
    if not prompts:
        sys.exit(f"{options.prompts} has no prompt in it")
    return Checkpoint(
        *(options.checkpoint, sampler, prompts, options.negative, options.size, options.seeds)
    )


def say(what: str) -> None:
    print(f"[{time.monotonic() - STARTED:5.0f} s] {what}", flush=True)
