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


def main(comfyui: str, pack: str, *labels: str) -> None:
    sys.path[:0] = [comfyui, pack]
    sys.argv[1:] = ["--cpu", "--use-pytorch-cross-attention"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import torch
    from architectures import ARCHITECTURES, Architecture, Draw
    from torch.utils import _pytree as pytree

    from asyncdiff_core.costs import parameter_costs
    from asyncdiff_core.dataflow import require_chain
    from asyncdiff_core.errors import LayoutError
    from asyncdiff_core.evaluator import Inputs
    from asyncdiff_core.host.layouts import entry_of, layout_of, position_of
    from asyncdiff_core.host.stage_weights import _attention_on_meta
    from asyncdiff_core.oracle import Oracle, _copy_inputs
    from asyncdiff_core.partition import Range, partition
    from asyncdiff_core.residuals import Residuals
    from asyncdiff_core.schedule import AsyncSchedule
    from asyncdiff_core.stage import StagedModel, copy_output
    from asyncdiff_core.trunk import Trunk, guess_layout

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
        staged = StagedModel(model, trunk, entry)
        num_units = len(trunk.units)

        def run(ranges: list[Range], warm_up: int, number: int = 3) -> list[object]:
            oracle = Oracle(staged, ranges)
            oracle.begin_run(AsyncSchedule(warm_up))
            outputs = [oracle.evaluate("lane", *each) for each in inputs[:number]]
            oracle.end_run()
            return outputs

        held: dict[str, object] = {}
        # At every place: whatever a unit reads of earlier ones has to be in the links.
        held["cut anywhere"] = all(
            same(run([(0, cut), (cut, num_units)], 1, 1), plain[:1]) for cut in range(1, num_units)
        )
        for stages in (2, 3, 4):
            ranges = partition(parameter_costs(trunk), [1.0] * stages)
            held[f"N={stages}"] = same(run(ranges, 3), plain)
            held[f"N={stages} async"] = same(run(ranges, 1), by_hand(staged, ranges, inputs))
        held["async differs"] = not same(run(ranges, 1)[1:], plain[1:])
        residuals = Residuals.of(trunk, position_of(model, "control"))
        if residuals is not None:
            args, kwargs = inputs[0]
            controlled = args, {**kwargs, "control": residuals_for(trunk, x=args[0])}
            staged_result = by_stage(staged, residuals, controlled)
            held["control residuals"] = not same(staged_result[0], plain[0]) and all(
                same(result, staged_result[0]) for result in staged_result[1:]
            )
        found = {"class": type(model).__name__, "units": num_units, "held": held}
        return {**found, "guess": guessed(spare, inputs[0], plain[0])}

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
        ranges = partition(parameter_costs(trunk), [1.0] * 3)
        oracle = Oracle(StagedModel(model, trunk, entry), ranges)
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

    def by_stage(staged: StagedModel, residuals: Residuals, inputs: Inputs) -> list[object]:
        """The result of one stage with all residuals, and of two with their own, by each cut."""
        num_units = len(staged.trunk.units)
        results = []
        for cut in range(num_units):
            stored: dict[int, object] = {}
            metas: list = []
            for units in ((0, cut), (cut, num_units)) if cut else ((0, num_units),):
                own = residuals.for_stage(inputs, units) if cut else inputs
                result, executed = staged.run_stage(
                    *(units, *_copy_inputs(*own)),
                    stored={u: copy_output(out) for u, out in stored.items()},
                    metas=metas,
                    produced=range(cut),
                    sink=lambda u, out, stored=stored: stored.update({u: copy_output(out)}),
                    record=True,
                )
                metas += executed
            results.append(result)
        return results

    def by_hand(staged: StagedModel, ranges: list[Range], inputs: list) -> list[object]:
        """The evaluations as the algorithm writes them, with every output of every unit kept.

        Stage k of evaluation i takes from the stages before it what they made in evaluation i-1.
        """
        num_units = len(staged.trunk.units)
        before: dict[int, object] = {}
        metas: list = []
        results = []
        for index, each in enumerate(inputs):
            now: dict[int, object] = {}
            for start, stop in ranges:
                stored = now if index == 0 else before
                result, executed = staged.run_stage(
                    *((start, stop), *_copy_inputs(*each)),
                    stored={u: copy_output(out) for u, out in stored.items() if u < start},
                    metas=metas,
                    produced=range(num_units),
                    sink=lambda unit, output, now=now: now.setdefault(unit, copy_output(output)),
                    record=index == 0,
                )
                metas += executed
            results.append(result)
            before = now
        return results

    report = {}
    with torch.inference_mode():
        for architecture in ARCHITECTURES:
            if labels and architecture.label not in labels:
                continue
            missing = {"class": architecture.class_name, "missing": True}
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
