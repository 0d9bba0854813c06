"""Run in a process of its own: workers, oracle and stock ComfyUI on a few architectures.

    python group_parity.py COMFYUI PACK

Prints one JSON object: the name of each comparison, and whether it held.
"""

from __future__ import annotations

import itertools
import json
import sys


def main(comfyui: str, pack: str) -> None:
    sys.path[:0] = [comfyui, pack]
    sys.argv[1:] = ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.hooks
    import comfy.sample
    import comfy.utils
    import torch
    from comfy.patcher_extension import WrappersMP
    from tiny_models import CONFIGS, REFUSED, conditioning, empty_latent, load

    from asyncdiff_core.algorithm.oracle import Oracle
    from asyncdiff_core.algorithm.schedule import AsyncSchedule
    from asyncdiff_core.algorithm.stage import StagedModel
    from asyncdiff_core.algorithm.trunk import Trunk
    from asyncdiff_core.comfyui.distribute import parallelize, plan_for, with_schedule
    from asyncdiff_core.comfyui.model.calls import ModelCall, with_sampled
    from asyncdiff_core.comfyui.model.kept_tokens import keep_no_tokens
    from asyncdiff_core.comfyui.model.layouts import entry_of, layout_of
    from asyncdiff_core.comfyui.model.skeleton import make_remote
    from asyncdiff_core.comfyui.patches.code_patches import split_options
    from asyncdiff_core.comfyui.run.forecast import Forecaster
    from asyncdiff_core.comfyui.run.pool import POOL
    from asyncdiff_core.errors import WorkerError

    torch.set_num_threads(1)
    comfy.utils.PROGRESS_BAR_ENABLED = False
    steps = 5

    def sample(model: object, name: str, hooks: tuple = (None, None)) -> torch.Tensor:
        empty = empty_latent(name)
        noise = comfy.sample.prepare_noise(empty, 1)
        prompts = [
            comfy.hooks.set_hooks_for_conditioning(conditioning(name, seed), each)
            for seed, each in zip((2, 3), hooks, strict=True)
        ]
        latent = comfy.sample.sample(
            *(model, noise, steps, 3.0, "euler", "simple", *prompts, empty), seed=5
        )
        parts = latent.unbind() if latent.is_nested else [latent]  # video and audio
        return torch.cat([part.flatten() for part in parts])

    def oracle_model(name: str, stages: list, schedule: AsyncSchedule) -> object:
        patcher = load(name)
        real = patcher.model.diffusion_model
        trunk = Trunk.of(real, layout_of(real))
        keep_no_tokens(real)
        oracle = Oracle(StagedModel(real, trunk, entry_of(real)), stages)
        oracle.begin_run(schedule)
        patcher.add_wrapper(WrappersMP.APPLY_MODEL, with_sampled)
        forecaster = Forecaster(patcher.model.model_sampling, predicts=schedule.prediction)

        def evaluate(call: ModelCall) -> torch.Tensor:
            call = call.with_options(split_options(call.options)[0])
            return oracle.evaluate(call.lane_key, *call.inputs, forecaster.forecast(call))

        make_remote(real, evaluate)
        return patcher

    def hooks_of(model: object) -> tuple:
        """LoRAs for the two conditionings, the first one with a keyframe in the middle."""
        keys = [k for k in model.model.state_dict() if k.startswith("diffusion_model.")]
        groups = []
        for seed in (1, 2):
            generator = torch.Generator().manual_seed(seed)
            group = comfy.hooks.HookGroup()
            hook = comfy.hooks.WeightHook(strength_model=0.5)
            hook.need_weight_init = False
            hook.weights = {
                key: ("diff", (0.1 * torch.randn(weight.shape, generator=generator),))
                for key in keys
                if (weight := comfy.utils.get_attr(model.model, key)).ndim == 2
            }
            group.add(hook)
            groups.append(group)
        for strength, start in ((1.0, 0.0), (0.2, 0.5)):
            keyframe = comfy.hooks.HookKeyframe(strength, start_percent=start)
            groups[0].hooks[0].hook_keyframe.add(keyframe)
        return tuple(groups)

    held = {}
    with torch.inference_mode():
        for name in CONFIGS:
            stock_model = load(name)
            stock = sample(stock_model, name)
            assert torch.isfinite(stock).all(), name
            workers = 3 if name in ("Wan VACE", "HiDream O1", "MiniMax H3") else 2
            model = parallelize(stock_model, plan_for(",".join(["cpu"] * workers)))
            if name == REFUSED:
                try:
                    sample(model, name)
                    reason = ""
                except WorkerError as error:
                    reason = str(error)
                said = "OtherHunYuanDiT cannot be spread", "blocks.5 reads the output of blocks.2"
                held[f"{name}: refused by name"] = all(part in reason for part in said)
                POOL.close()
                continue
            full = sample(with_schedule(model, AsyncSchedule(steps)), name)
            held[f"{name}: full warm-up equals stock"] = torch.equal(full, stock)
            ours = sample(with_schedule(model, AsyncSchedule(1)), name)
            stages = POOL.peek(model.remote.key).holdings.stages
            without = ours
            oracle = sample(oracle_model(name, stages, AsyncSchedule(1)), name)
            held[f"{name}: async equals oracle"] = torch.equal(ours, oracle)
            predicting = AsyncSchedule(1, prediction=True)
            predicted = sample(with_schedule(model, predicting), name)
            stages = POOL.peek(model.remote.key).holdings.stages
            oracle = sample(oracle_model(name, stages, predicting), name)
            held[f"{name}: predicted equals oracle"] = torch.equal(predicted, oracle)
            held[f"{name}: predicted differs"] = not torch.equal(predicted, ours)
            held[f"{name}: async differs from stock"] = not torch.equal(ours, stock)
            if name == "Lumina 2":  # on the workers that are there
                hooks = hooks_of(stock_model)
                hooked = sample(stock_model, name, hooks)
                full = sample(with_schedule(model, AsyncSchedule(steps)), name, hooks)
                held["LoRA hooks: full warm-up equals stock"] = torch.equal(full, hooked)
                ours = sample(with_schedule(model, AsyncSchedule(1)), name, hooks)
                oracle = sample(oracle_model(name, stages, AsyncSchedule(1)), name, hooks)
                held["LoRA hooks: async equals oracle"] = torch.equal(ours, oracle)
                distinct = [hooked, ours, stock]
                held["LoRA hooks: async, stock and without them differ"] = not any(
                    torch.equal(a, b) for a, b in itertools.combinations(distinct, 2)
                )
                again = sample(with_schedule(model, AsyncSchedule(1)), name)
                held["LoRA hooks leave nothing behind"] = torch.equal(again, without)
            POOL.close()
    print(json.dumps(held))


if __name__ == "__main__":
    main(*sys.argv[1:])
