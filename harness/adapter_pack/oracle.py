"""The oracle in ComfyUI's own process, on a stock MODEL with all that is patched on it."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP

from .model_node import ModelNode


class TestOracle(ModelNode):
    """A MODEL that one process evaluates as workers with these stages would."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        inputs = {"stages": ("STRING", {}), "warm_up": ("INT", {"default": 1})}
        return {"required": {"model": ("MODEL",), **inputs}}

    def patch(self, model: Any, stages: str, warm_up: int) -> tuple[Any]:
        model = model.clone()
        calls, forecast = _engine("comfyui.model.calls"), _engine("comfyui.run.forecast")
        options, schedule = _engine("comfyui.patches.code_patches"), _engine("algorithm.schedule")
        layouts, skeleton = _engine("comfyui.model.layouts"), _engine("comfyui.model.skeleton")
        flowing = _engine("comfyui.patches.flowing")
        oracle, stage, trunk = (_engine(f"algorithm.{one}") for one in ("oracle", "stage", "trunk"))
        cut = [tuple(map(tuple, ranges)) for ranges in json.loads(stages)]

        def sampled(executor: Any, *args: Any, **kwargs: Any) -> Any:
            base = executor.class_obj.model_patcher.model
            network = base.diffusion_model
            units = trunk.Trunk.of(network, layouts.layout_of(network))
            entry = layouts.entry_of(network)
            forecaster = forecast.Forecaster(base.model_sampling, predicts=True)
            with _as_it_was([network, *(unit.module for unit in units.units)]):
                staged = stage.StagedModel(network, units, entry)
                judge = oracle.Oracle(staged, cut)
                judge.begin_run(schedule.AsyncSchedule(warm_up, prediction=True))

                def evaluate(call: Any) -> Any:
                    plain, code = options.split_options(call.options)
                    code = options._new_containers(code)
                    staged.beside = flowing.flow_of(code, lambda: staged)
                    call = call.with_options({**plain, **code})
                    return judge.evaluate(call.lane_key, *call.inputs, forecaster.forecast(call))

                skeleton.make_remote(network, evaluate)
                output = executor(*args, **kwargs)
                judge.end_run()
            return output

        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "oracle", sampled)
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "oracle", calls.with_sampled)
        return (model,)


def _engine(module: str) -> Any:
    """A module of the engine, which ComfyUI's process has under the name of the pack's folder."""
    root = next(name for name in sys.modules if name.endswith("asyncdiff_core"))
    return importlib.import_module(f"{root}.{module}")


@contextmanager
def _as_it_was(modules: list[torch.nn.Module]) -> Iterator[None]:
    """Whatever is set on these objects is gone afterwards."""
    before = [dict(vars(module)) for module in modules]
    try:
        yield
    finally:
        for module, its in zip(modules, before, strict=True):
            vars(module).clear()
            vars(module).update(its)
