"""Run in a process of its own: stages of every architecture against its plain forward, bit by bit.

    python architecture_parity.py COMFYUI PACK [LABEL ..]

Prints one JSON object: per architecture its class, its number of units, what was compared, and what
becomes of it as one that has no layout.
"""

from __future__ import annotations

import copy
import json
import sys
import traceback
from collections.abc import Sequence

# They swap the halves of a batch, which are cond and uncond of the same latents.
PAIRED = {"Hunyuan3D 2.1", "SeedVR2"}


def main(comfyui: str, pack: str, *labels: str) -> None:
    sys.path[:0] = [comfyui, pack]
    sys.argv[1:] = ["--cpu", "--use-pytorch-cross-attention"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import torch
    from einops import EinopsError
    from torch.utils import _pytree as pytree

    from asyncdiff_core.algorithm.activations import copy_output
    from asyncdiff_core.algorithm.evaluator import Inputs
    from asyncdiff_core.algorithm.oracle import Oracle, _copy_inputs
    from asyncdiff_core.algorithm.schedule import AsyncSchedule
    from asyncdiff_core.algorithm.stage import Neighbours, StagedModel
    from asyncdiff_core.algorithm.stages import Stage
    from asyncdiff_core.algorithm.trunk import Trunk, guess_layout
    from asyncdiff_core.comfyui.model.calls import ModelCall, scatter
    from asyncdiff_core.comfyui.model.kept_tokens import keep_no_tokens
    from asyncdiff_core.comfyui.model.layouts import (
        entry_of,
        latents_are_apart,
        layout_of,
        position_of,
    )
    from asyncdiff_core.comfyui.stage_model import _attention_on_meta
    from asyncdiff_core.errors import LayoutError
    from asyncdiff_core.planning.chain_check import require_chain
    from asyncdiff_core.planning.costs import parameter_costs
    from asyncdiff_core.planning.cuts import cut
    from asyncdiff_core.wire.residuals import Residuals
    from harness.cuts import all_folds, chain
    from harness.own_process.architectures import ARCHITECTURES, Architecture, Draw

    torch.set_num_threads(1)

    def same(a: object, b: object) -> bool:
        pairs = zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True)
        return all(torch.equal(x, y) for x, y in pairs)

    def compare(architecture: Architecture) -> dict[str, object]:
        model = architecture.build()
        spare = copy.deepcopy(model)
        entry = entry_of(model)
        inputs = [architecture.evaluation(number) for number in range(3)]
        plain = []
        for args, kwargs in inputs:
            args, kwargs = _copy_inputs(args, kwargs)
            plain.append(getattr(model, entry)(*args, **kwargs))
        trunk = Trunk.of(model, layout_of(model))
        keep_no_tokens(model)
        staged = StagedModel(model, trunk, entry)
        num_units = len(trunk.units)

        def run(stages: Sequence[Stage], warm_up: int, number: int = 3) -> list[object]:
            if hasattr(model, "clear_kv_cache"):
                model.clear_kv_cache()  # else it has what the run before kept
            oracle = Oracle(staged, stages)
            oracle.begin_run(AsyncSchedule(warm_up))
            outputs = [oracle.evaluate("lane", *each) for each in inputs[:number]]
            oracle.end_run()
            return outputs

        held: dict[str, object] = {}
        # At every place: whatever a unit reads of earlier ones has to be in the links.
        held["cut anywhere"] = all(
            same(run(chain((0, place), (place, num_units)), 1, 1), plain[:1])
            for place in range(1, num_units)
        )
        for number in (2, 3, 4):
            stages = cut(parameter_costs(trunk), [1.0] * number, trunk.skips)
            held[f"N={number}"] = same(run(stages, 3), plain)
            held[f"N={number} async"] = same(run(stages, 1), by_hand(staged, stages, inputs))
        held["async differs"] = not same(run(stages, 1)[1:], plain[1:])
        if trunk.layout.skips:
            folds = list(all_folds(num_units, 2, trunk.skips))
            folds = folds[:: len(folds) // 12 + 1]
            held["folded anywhere"] = all(same(run(fold, 1, 1), plain[:1]) for fold in folds)
        residuals = Residuals.of(trunk, position_of(model, "control"))
        if residuals is not None:
            args, kwargs = inputs[0]
            controlled = args, {**kwargs, "control": residuals_for(trunk, x=args[0])}
            staged_result = by_stage(staged, residuals, controlled)
            held["control residuals"] = not same(staged_result[0], plain[0]) and all(
                same(result, staged_result[0]) for result in staged_result[1:]
            )
        if architecture.label not in PAIRED:
            are_apart = each_alone(model, inputs[0], plain[0])
            held["latents apart"] = are_apart == latents_are_apart(model)
        found = {"class": type(model).__name__, "units": num_units, "held": held}
        return {**found, "guess": guessed(spare, inputs[0], plain[0])}

    def each_alone(model: torch.nn.Module, each: Inputs, plain: object) -> bool:
        """Whether each row of the batch becomes by itself what it becomes in the batch."""
        first = next(x for x in pytree.tree_leaves(each) if isinstance(x, torch.Tensor))
        call = ModelCall(first, {"cond_or_uncond": [0], "uuids": [0]}, lambda options: each)
        try:
            rows = []
            for part in scatter([0], 1, len(first)):
                args, kwargs = _copy_inputs(*call.of(part).inputs)
                rows.append(getattr(model, entry_of(model))(*args, **kwargs))
        except EinopsError:  # the frames that there should be
            return False
        pairs = zip(*map(pytree.tree_leaves, rows), strict=True)
        together = (x for x in pytree.tree_leaves(plain) if isinstance(x, torch.Tensor))
        return all(
            torch.allclose(torch.cat(parts), whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))
            for parts, whole in zip(pairs, together, strict=True)
        )

    def guessed(model: torch.nn.Module, each: tuple, plain: object) -> str:
        """What becomes of the architecture as if it had no layout.

        ``passes``, or the reason of the refusal; ``wrong`` if it passes and its stages do not give
        `plain`.
        """
        entry = entry_of(model)
        try:
            on_meta = copy.deepcopy(model).to("meta")
            trunk = Trunk.of(on_meta, guess_layout(on_meta))
            with _attention_on_meta():
                require_chain(on_meta, trunk, *each, entry=entry)
        except LayoutError as error:
            return str(error)
        trunk = Trunk.of(model, guess_layout(model))
        stages = cut(parameter_costs(trunk), [1.0] * 3)
        oracle = Oracle(StagedModel(model, trunk, entry), stages)
        oracle.begin_run(AsyncSchedule(1))
        is_right = same(oracle.evaluate("lane", *_copy_inputs(*each)), plain)
        return "passes" if is_right else "wrong"

    def residuals_for(trunk: Trunk, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        """One for each block that takes one, as small as can be added to what flows there."""
        draw = Draw(9)
        layout = trunk.layout.control
        assert layout is not None
        shape = (x.shape[0], *[1] * (3 if trunk.layout.layers else 2))
        control: dict[str, list[torch.Tensor]] = {"input": [], "middle": [], "output": []}
        for key, blocks in (*layout.after, *layout.before):
            control[key] = [draw(*shape) for _ in trunk.spans[blocks]]
        return control

    class Kept(Neighbours):
        """What was sent before, and every output of every unit of the stage."""

        def __init__(self, sent: dict[int, object], metas: list) -> None:
            super().__init__()
            self.consumed, self.metas = sent, metas
            self.given: dict[int, object] = {}

        def take(self, unit: int) -> object:
            return copy_output(self.consumed[unit])

        def give(self, unit: int, output: object) -> None:
            super().give(unit, output)
            self.given[unit] = copy_output(output)

    def by_stage(staged: StagedModel, residuals: Residuals, inputs: Inputs) -> list[object]:
        """The result of one stage with all residuals, and of two with their own, by each cut."""
        num_units = len(staged.trunk.units)
        results = []
        for place in range(num_units):
            others = Kept({}, [])
            for units in ((0, place), (place, num_units)) if place else ((0, num_units),):
                own = residuals.for_stage(inputs, (units,)) if place else inputs
                others = Kept(others.given, others.metas)
                result = staged.run_stage((units,), *_copy_inputs(*own), others)
            results.append(result)
        return results

    def by_hand(staged: StagedModel, stages: Sequence[Stage], inputs: list) -> list[object]:
        """The evaluations as the algorithm writes them, with every output of every unit kept.

        Stage k of evaluation i takes from stage k-1 what that made in evaluation i-1. The way into
        a fold is of evaluation i, and so is what lies within one stage.
        """
        before: dict[int, object] = {}
        metas: list = []
        results = []
        for index, each in enumerate(inputs):
            way_in: dict[int, object] = {}
            for stage in reversed(stages):
                if len(stage) > 1:
                    others = Kept(dict(way_in), metas)
                    staged.run_stage(stage[:1], *_copy_inputs(*each), others)
                    way_in |= others.given
            now: dict[int, object] = {}
            for stage in stages:
                others = Kept((now if index == 0 else before) | way_in, metas)
                result = staged.run_stage(stage, *_copy_inputs(*each), others)
                now |= others.given
            results.append(result)
            before = now
        return results

    report = {}
    with torch.inference_mode():
        for architecture in ARCHITECTURES:
            if labels and architecture.label not in labels:
                continue
            missing = {"class": architecture.class_name, "missing": True}
            if architecture.is_newer:
                missing["newer"] = True
            if not architecture.is_known():
                report[architecture.label] = missing
                continue
            try:
                report[architecture.label] = compare(architecture)
            except Exception as error:
                if "unexpected keyword argument" in str(error):  # a newer version's option
                    report[architecture.label] = missing
                    continue
                report[architecture.label] = {"error": traceback.format_exc()}
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
