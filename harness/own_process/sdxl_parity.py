"""Run in a process of its own: group, oracle and stock ComfyUI on one model, bit for bit.

    python sdxl_parity.py COMFYUI PACK [everything]

Prints one JSON object: the name of each comparison, and whether it held. With `everything`, group
and oracle are compared for every combination of plan, warm-up, steps, sampler and denoise, which
takes some ten minutes:

    python3 dev.py python -m benchmarks.parity
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from typing import Any

# the schedule, and how it is sampled
SOME_RUNS = (
    ({"warm_up": 1, "prediction": True}, {}),
    ({"warm_up": 2}, {"sampler": "dpmpp_2m", "number": 12, "denoise": 0.6}),
    ({"warm_up": 3, "time_shift": True}, {"sampler": "dpmpp_2m", "number": 12}),
    (
        {"warm_up": 1, "prediction": True, "cool_down": 1, "tolerance": 0.3},
        {"sampler": "dpmpp_2m", "number": 12},
    ),
)
ALL_RUNS = tuple(
    (
        {"warm_up": warm_up, "prediction": prediction},
        {"sampler": sampler, "number": number, "denoise": denoise},
    )
    for warm_up, prediction, sampler, number, denoise in itertools.product(
        (1, 2, 3), (False, True), ("euler", "dpmpp_2m"), (7, 20), (1.0, 0.6)
    )
)


def main(comfyui: str, pack: str, extent: str = "") -> None:
    runs = ALL_RUNS if extent == "everything" else SOME_RUNS
    sys.path[:0] = [comfyui, pack]
    sys.argv[1:] = ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sample
    import comfy.utils
    import torch
    from comfy.patcher_extension import WrappersMP

    from asyncdiff_core.algorithm.oracle import Oracle
    from asyncdiff_core.algorithm.schedule import AsyncSchedule
    from asyncdiff_core.algorithm.stage import StagedModel
    from asyncdiff_core.algorithm.trunk import Trunk
    from asyncdiff_core.comfyui.distribute import parallelize, plan_for, with_schedule
    from asyncdiff_core.comfyui.model.calls import ModelCall, with_sampled
    from asyncdiff_core.comfyui.model.layouts import entry_of, layout_of
    from asyncdiff_core.comfyui.model.loading import Loader
    from asyncdiff_core.comfyui.model.skeleton import build_skeleton, make_remote
    from asyncdiff_core.comfyui.patches.code_patches import split_options
    from asyncdiff_core.comfyui.run.forecast import Forecaster
    from asyncdiff_core.comfyui.run.pool import POOL
    from harness.own_process import reduced_sdxl

    torch.set_num_threads(1)
    comfy.utils.PROGRESS_BAR_ENABLED = False
    generator = torch.Generator().manual_seed(0)
    steps = 7

    def conditioning() -> list:
        pooled = torch.randn(1, 1280, generator=generator)
        return [[torch.randn(1, 77, 128, generator=generator), {"pooled_output": pooled}]]

    positive, negative = conditioning(), conditioning()
    empty = torch.zeros(1, 4, 8, 8)
    noise = torch.randn(empty.shape, generator=generator)

    def sample(
        model: object,
        unbatched: bool,
        sampler: str = "euler",
        number: int = 7,
        cfg: float = 4.0,
        **kwargs: float,
    ) -> torch.Tensor:
        if unbatched:
            model = model.clone()
            # ComfyUI then finds no room for cond and uncond in one batch.
            model.get_free_memory = lambda device: 0
        return comfy.sample.sample(
            *(model, noise, number, cfg, sampler, "normal", positive, negative, empty),
            **{"seed": 5, **kwargs},
        )

    def oracle_model(stages: list, schedule: AsyncSchedule, stride: int = 1) -> object:
        """A MODEL that samples with the oracle, in this process."""
        real = reduced_sdxl.load().model.diffusion_model
        trunk = Trunk.of(real, layout_of(real))
        oracle = Oracle(StagedModel(real, trunk, entry_of(real)), stages, stride)
        oracle.begin_run(schedule)
        patcher = build_skeleton(Loader("harness.own_process.reduced_sdxl:load", ()))
        # Nothing to load: the skeleton's own parameters are on meta.
        patcher.partially_load = lambda *args, **kwargs: 0
        patcher.add_wrapper(WrappersMP.APPLY_MODEL, with_sampled)
        forecaster = Forecaster(patcher.model.model_sampling, predicts=schedule.prediction)

        def evaluate(call: ModelCall) -> torch.Tensor:
            call = call.with_options(split_options(call.options)[0])
            return oracle.evaluate(call.lane_key, *call.inputs, forecaster.forecast(call))

        make_remote(patcher.model.diffusion_model, evaluate)
        return patcher

    held = {}
    with torch.inference_mode():
        stock_model = reduced_sdxl.load()
        for unbatched in (False, True):
            batch = "unbatched" if unbatched else "batched"
            stock = sample(stock_model, unbatched)
            assert torch.isfinite(stock).all()
            for workers in (2, 3, 4):
                model = parallelize(stock_model, plan_for(",".join(["cpu"] * workers)))
                name = f"N={workers} {batch}"
                full = sample(with_schedule(model, AsyncSchedule(steps)), unbatched)
                held[f"{name} full warm-up equals stock"] = torch.equal(full, stock)
                stages = POOL.peek(model.remote.key).holdings.stages
                for warm_up in (1, 3):
                    scheduled = with_schedule(model, AsyncSchedule(warm_up))
                    ours = sample(scheduled, unbatched)
                    reference = sample(oracle_model(stages, AsyncSchedule(warm_up)), unbatched)
                    name = f"N={workers} {batch} warm_up={warm_up}"
                    held[f"{name} equals oracle"] = torch.equal(ours, reference)
                    held[f"{name} differs from stock"] = not torch.equal(ours, stock)
                    if workers == 2 and warm_up == 1:
                        repeats = [sample(scheduled, unbatched) for _ in range(10)]
                        same = all(torch.equal(again, ours) for again in repeats)
                        held[f"{name} ten repeats are identical"] = same
        # Strides, time shift and replicas. Conds on replicas is unbatched CFG.
        plans = ((2, 1, 1), (2, 2, 1), (3, 2, 1), (2, 3, 1), (1, 1, 2), (2, 1, 2), (2, 2, 2))
        for stages, stride, replicas in plans:
            devices = ",".join(["cpu"] * (replicas * (stages + stride - 1)))
            plan = plan_for(devices, stages=stages, replicas=replicas, stride=stride)
            model = parallelize(stock_model, plan)
            unbatched = replicas > 1
            stock = sample(stock_model, unbatched)
            for chosen, how in runs:
                schedule = AsyncSchedule(**chosen)
                ours = sample(with_schedule(model, schedule), unbatched=False, **how)
                cuts = POOL.peek(model.remote.key).holdings.stages
                oracle = oracle_model(cuts, schedule, stride)
                name = f"N={stages} S={stride} R={replicas} {chosen} {how}"
                expected = sample(oracle, unbatched, **how)
                held[f"{name} equals oracle"] = torch.equal(ours, expected)
            if stages == 1 and stride == 1:
                held["replicas alone equal stock"] = torch.equal(
                    sample(with_schedule(model, AsyncSchedule(1)), unbatched=False), stock
                )
        # With one cond `auto` has devices take consecutive evaluations, where these are foreseen.
        model = parallelize(stock_model, plan_for("auto"))
        one = {"unbatched": False, "cfg": 1.0}
        stock = sample(stock_model, **one)
        for sampler, predicts, expected in (
            ("euler", True, (1, 2)),
            ("uni_pc", True, (1, 2)),
            ("euler", False, (2, 1)),
            ("euler_ancestral", True, (2, 1)),
        ):
            schedule = AsyncSchedule(2, prediction=predicts)
            ours = sample(with_schedule(model, schedule), sampler=sampler, **one)
            group = POOL.peek(model.remote.key)
            name = f"auto, one cond, {sampler}{' draft' if predicts else ''}"
            held[f"{name}: the plan"] = (group.plan.stages, group.plan.stride) == expected
            oracle = oracle_model(group.holdings.stages, schedule, group.plan.stride)
            reference = sample(oracle, sampler=sampler, **one)
            held[f"{name} equals oracle"] = torch.equal(ours, reference)

        # Not where something may give the model other inputs in every step.
        def later(apply: Callable[..., Any], given: dict[str, Any]) -> Any:
            context = given["c"]["c_crossattn"] * (1 + given["timestep"][0].item() / 1e4)
            return apply(
                given["input"], given["timestep"], **{**given["c"], "c_crossattn": context}
            )

        wrapped = model.clone()
        wrapped.set_model_unet_function_wrapper(later)
        around = model.clone()
        around.add_wrapper(
            WrappersMP.APPLY_MODEL, lambda executor, *args, **kw: executor(*args, **kw)
        )
        for name, changed in ("function", wrapped), ("wrapper", around):
            sample(with_schedule(changed, AsyncSchedule(2, prediction=True)), **one)
            plan = POOL.peek(model.remote.key).plan
            held[f"auto, one cond, a {name} around the model: stages"] = plan.stages == 2
        full = sample(with_schedule(model, AsyncSchedule(steps, prediction=True)), **one)
        held["auto, one cond, full warm-up equals stock"] = torch.equal(full, stock)
    POOL.close()
    print(json.dumps(held))


if __name__ == "__main__":
    main(*sys.argv[1:])
