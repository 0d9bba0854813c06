"""Sampling in this process: by ComfyUI alone, and with the oracle in place of a worker group."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.sample
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode

from asyncdiff_core.algorithm.evaluator import Forecast, Inputs
from asyncdiff_core.algorithm.oracle import Message, Oracle
from asyncdiff_core.algorithm.schedule import Round
from asyncdiff_core.algorithm.stage import StagedModel
from asyncdiff_core.algorithm.stages import Stage
from asyncdiff_core.algorithm.trunk import Trunk
from asyncdiff_core.comfyui.model.calls import ModelCall, with_sampled
from asyncdiff_core.comfyui.model.layouts import entry_of, layout_of
from asyncdiff_core.comfyui.model.loading import Loader
from asyncdiff_core.comfyui.model.skeleton import make_remote
from asyncdiff_core.comfyui.patches.code_patches import split_options
from asyncdiff_core.comfyui.run.forecast import Forecaster
from asyncdiff_core.comfyui.run.launch import spec_of
from asyncdiff_core.comfyui.stage_model import ComfyStageModel
from asyncdiff_core.planning.cuts import cut
from asyncdiff_core.settings import folds

from .metrics import relative_distance
from .settings import Setting


@dataclass(frozen=True)
class Sampler:
    """How the full run is sampled: the inputs of ComfyUI's KSampler."""

    name: str = "euler"
    scheduler: str = "simple"
    steps: int = 30
    cfg: float = 4.0

    def sample(
        self, model: Any, positive: Any, negative: Any, empty: Any, seed: int, steps: int = 0
    ) -> torch.Tensor:
        """The latent that KSampler makes of `empty`."""
        empty = comfy.sample.fix_empty_latent_channels(model, empty)
        noise = comfy.sample.prepare_noise(empty, seed)
        result: torch.Tensor = comfy.sample.sample(
            *(model, noise, steps or self.steps, self.cfg, self.name, self.scheduler),
            *(positive, negative, empty),
            seed=seed,
            disable_pbar=True,
        )
        return result


@dataclass
class Drift:
    """How far each activation that crosses a cut is from the fresh one, by evaluation.

    `values`: (stage that receives it, evaluation) -> relative L2 distances, one per lane and batch.
    `num_sync`: how many of `num_evaluations` were synchronous.
    """

    values: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    num_sync: int = 0
    num_evaluations: int = 0

    def observe(self, round_: Round, stale: list[Message], fresh: list[Message]) -> None:
        self.num_evaluations += len(round_.targets)
        if round_.mode == "sync":
            self.num_sync += len(round_.targets)
        else:
            for stage, (before, now) in enumerate(zip(stale, fresh, strict=True)):
                if now:
                    distances = self.values.setdefault((stage, round_.evaluation), [])
                    distances.append(relative_distance(before, now))

    def mean(self) -> list[dict[str, float]]:
        """One entry per stage and evaluation, in order."""
        return [
            {"stage": stage, "evaluation": evaluation, "drift": sum(found) / len(found)}
            for (stage, evaluation), found in sorted(self.values.items())
        ]


class Bench:
    """One model, sampled under any setting.

    Args:
        model: a stock MODEL, as ComfyUI's loaders return it, with or without patches.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._network = model.model.diffusion_model
        trunk = Trunk.of(self._network, layout_of(self._network))
        self._staged = StagedModel(self._network, trunk, entry_of(self._network))
        self._costs: Sequence[float] = ()
        self.num_rows = 0  # latents that the stock model was evaluated for, cond and uncond each

    def _count(self, evaluate: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.num_rows += len(x)
        return evaluate(x, *args, **kwargs)

    @property
    def num_units(self) -> int:
        return len(self._staged.trunk.units)

    @contextlib.contextmanager
    def under(self, setting: Setting, drift: Drift) -> Iterator[Any]:
        """A MODEL that samples as a group with `setting` would."""
        model = self.model.clone()
        if setting.replicas > 1:
            # Replicas share the conds of an evaluation, which is what ComfyUI does by itself where
            # it finds no memory for one batch.
            model.get_free_memory = lambda device: 0
        if setting.cache is not None:
            caching = {"EasyCache": EasyCacheNode, "LazyCache": LazyCacheNode}[setting.cache]
            defaults = {"start_percent": 0.15, "end_percent": 0.95, "verbose": False}
            (model,) = caching.execute(model, setting.reuse_threshold, **defaults).args
        if setting.is_stock:
            # Within what a cache wraps, so that what it leaves out is not counted.
            model.add_wrapper(WrappersMP.DIFFUSION_MODEL, self._count)
            yield model
            return
        evaluate = _Evaluation(self, setting, drift)
        make_remote(self._network, evaluate)
        model.add_wrapper(WrappersMP.APPLY_MODEL, with_sampled)
        try:
            yield model
        finally:
            delattr(self._network, entry_of(self._network))
            evaluate.end()

    def stages(self, number: int, args: Any, kwargs: Any) -> tuple[Stage, ...]:
        """The cuts that a group makes for inputs like these."""
        if not self._costs:
            spec = spec_of(self.model.model, Loader.of(self.model))
            self._costs = ComfyStageModel(spec, args[0].device).measure(args, kwargs)
        skips = self._staged.trunk.skips if folds() else ()
        return cut(self._costs, [1.0] * number, skips)

    def oracle(self, stages: tuple[Stage, ...], setting: Setting, drift: Drift) -> Oracle:
        oracle = Oracle(self._staged, stages, setting.stride, drift.observe)
        oracle.begin_run(setting.schedule)
        return oracle


class _Evaluation:
    """What stands in for the diffusion model: one sampling run on the oracle."""

    def __init__(self, bench: Bench, setting: Setting, drift: Drift) -> None:
        self._bench, self._setting, self._drift = bench, setting, drift
        self._forecaster = Forecaster(
            bench.model.get_model_object("model_sampling"), predicts=setting.prediction
        )
        self._oracle: Oracle | None = None
        self._done: dict[Any, list[torch.Tensor]] = {}  # for the reference's schedule

    def __call__(self, call: ModelCall) -> Any:
        call = call.with_options(split_options(call.options)[0])
        args, kwargs = call.inputs
        if self._oracle is None:
            stages = self._bench.stages(self._setting.stages, args, kwargs)
            self._oracle = self._bench.oracle(stages, self._setting, self._drift)
        forecast, key = self._forecaster.forecast(call), call.lane_key
        if self._setting.is_reference:
            return self._as_reference(key, (args, kwargs), forecast)
        return self._oracle.evaluate(key, args, kwargs, forecast)

    def _as_reference(self, key: Any, inputs: Inputs, forecast: Forecast | None) -> torch.Tensor:
        done = self._done.setdefault(key, [])
        setting = self._setting
        if len(done) == setting.warm_up and setting.stride == 2 and setting.warm_up % 2 == 0:
            done.append(done[-1])
        else:
            assert self._oracle is not None
            done.append(self._oracle.evaluate(key, *inputs, forecast).clone())
        return done[-1]

    def end(self) -> None:
        if self._oracle is not None:
            self._oracle.end_run()
