"""Run in a process of its own: every family in every format, loaded by skeleton and stages.

    python format_parity.py COMFYUI PACK FOLDER [FAMILY ..]

Per family and format it says what held, and what did not: skeleton and stock model have the same
keys, with dynamic VRAM in the host as well; a LoRA finds the same keys; the sizes are those of the
weights; nothing is on the meta device that is needed; and each weight of two stages has the bits of
the stock model's, also in a checkpoint, and where they are handed over. Prints
one JSON object.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import traceback
import unittest.mock
from pathlib import Path
from typing import Any


def main(comfyui: str, pack: str, folder: str, *names: str) -> None:
    sys.path[:0] = [comfyui, pack]
    sys.argv[1:] = ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.lora
    import comfy.memory_management
    import comfy.model_patcher
    import comfy.sd
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    from asyncdiff_core.algorithm.trunk import Trunk, tensor_bytes
    from asyncdiff_core.comfyui.model.absent import AbsentWeight
    from asyncdiff_core.comfyui.model.hand_over import UNET, Comparison, loader_of
    from asyncdiff_core.comfyui.model.layouts import host_parts_of, layout_of
    from asyncdiff_core.comfyui.model.loading import Loader
    from asyncdiff_core.comfyui.model.samples import WeightSamples
    from asyncdiff_core.comfyui.model.skeleton import build_skeleton
    from asyncdiff_core.comfyui.run.launch import spec_of
    from asyncdiff_core.comfyui.stage_model import build
    from asyncdiff_core.errors import LoaderError
    from harness.own_process.formats import FORMATS
    from harness.own_process.stock_format import families, file_of

    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)
    cpu = torch.device("cpu")

    checkpoint = str(Path(folder) / "checkpoint.safetensors")

    def metadata(path: str) -> Any:
        with safe_open(path, "pt") as file:
            return file.metadata()

    def same(a: Any, b: Any) -> bool:
        if hasattr(a, "__tensor_flatten__") or hasattr(b, "__tensor_flatten__"):
            parts, others = a.__tensor_flatten__()[0], b.__tensor_flatten__()[0]
            return parts == others and all(same(getattr(a, n), getattr(b, n)) for n in parts)
        bits = (x.detach().contiguous().view(-1).view(torch.uint8) for x in (a, b))
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)

    def skeleton_with_dynamic_vram(loader: Loader) -> Any:
        kept = comfy.memory_management.aimdo_enabled, comfy.model_patcher.CoreModelPatcher
        comfy.memory_management.aimdo_enabled = True
        comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
        try:
            return build_skeleton(loader)
        finally:
            comfy.memory_management.aimdo_enabled, comfy.model_patcher.CoreModelPatcher = kept

    def compare(path: str) -> dict[str, bool]:
        try:
            stock = comfy.sd.load_diffusion_model(path)
        except (RuntimeError, AttributeError):
            return {}  # ComfyUI takes the model's sizes from a layer that is packed
        loader = Loader.of(stock)
        samples = WeightSamples(stock)
        skeleton = build_skeleton(loader, samples.see)
        model, whole = skeleton.model.diffusion_model, stock.model.diffusion_model
        trunk = Trunk.of(model, layout_of(model))
        parts = tuple(f"{part}." for part in host_parts_of(model))
        own = [p for n, p in model.named_parameters() if not n.startswith(parts)]
        rest = [p for n, p in skeleton.model.named_parameters() if "diffusion_model" not in n]

        # The parts of a quantised weight are nobody's to patch.
        parts_of_a_weight = (".weight_scale", ".weight_scale_2", ".comfy_quant", ".input_scale")

        def is_whole(name: str) -> bool:
            return not name.endswith((*parts_of_a_weight, ".pre_quant_scale"))

        def keys(patcher: Any) -> set[str]:
            return set(filter(is_whole, patcher.model.state_dict()))

        def lora_keys(patcher: Any) -> dict[str, Any]:
            names = comfy.lora.model_lora_keys_unet(patcher.model, {})
            return {k: v for k, v in names.items() if not isinstance(v, str) or is_whole(v)}

        held = {
            "weights are as in the file": samples.altered == [],
            "keys": keys(skeleton) == keys(stock),
            "keys, dynamic VRAM": keys(skeleton_with_dynamic_vram(loader)) == keys(stock),
            "lora keys": lora_keys(skeleton) == lora_keys(stock),
            "shapes": {n: p.shape for n, p in model.named_parameters()}
            == {n: p.shape for n, p in whole.named_parameters()},
            "sizes": sum(tensor_bytes(p) for p in model.parameters())
            == sum(tensor_bytes(p) for p in whole.parameters()),
            "absent": all(isinstance(p, AbsentWeight) for p in own),
            "host parts": all(
                same(p, dict(whole.named_parameters())[n])
                for n, p in model.named_parameters()
                if n.startswith(parts)
            ),
            "the rest is here": not any(p.is_meta for p in rest),
        }
        num_units = len(trunk.units)
        middle = num_units // 2
        first, last = ((0, middle),), ((middle, num_units),)
        weights = dict(whole.named_parameters())
        # The same in a checkpoint.
        save_file({f"{UNET}{k}": v for k, v in load_file(path).items()}, checkpoint, metadata(path))
        in_checkpoint = Loader.of(
            comfy.sd.load_checkpoint_guess_config(checkpoint, False, False)[0]
        )
        # And as a MODEL of a pack, which leaves no word of its file.
        stock.cached_patcher_init = None
        handed_over = loader_of(stock, WeightSamples(stock))
        comparison = Comparison(stock)
        again = build_skeleton(handed_over, comparison.see)
        comparison.require_same(again.model)
        for name, stage, model, call in (
            ("first stage", first, skeleton, loader),
            ("last stage", last, skeleton, loader),
            ("last stage, in a checkpoint", last, build_skeleton(in_checkpoint), in_checkpoint),
            ("first stage, handed over", first, again, handed_over),
            ("last stage, handed over", last, again, handed_over),
        ):
            stages = build(spec_of(model.model, call), cpu)
            stages.load(stage, None)
            stages.verify()
            units = [
                trunk.units[index].name for start, stop in stage for index in range(start, stop)
            ]
            others = tuple(f"{u.name}." for u in trunk.units if u.name not in units)
            loaded = dict(stages._patcher.model.diffusion_model.named_parameters())
            wanted = {n for n in weights if not n.startswith(others)}
            held[f"weights of the {name}"] = set(loaded) == wanted and all(
                same(loaded[n], weights[n]) for n in wanted
            )
        return held

    def is_refused_without_room(path: str) -> bool:
        stock = comfy.sd.load_diffusion_model(path)
        stock.cached_patcher_init = None
        full = shutil._ntuple_diskusage(2**30, 2**30, 0)
        with unittest.mock.patch.object(shutil, "disk_usage", return_value=full):
            try:
                loader_of(stock, WeightSamples(stock))
            except LoaderError as error:
                return "there is no room for them" in str(error)
        return False

    done: dict[str, dict[str, Any]] = {}
    for name in names or families():
        done[name] = {}
        for kind in FORMATS:
            path = Path(folder) / "diffusion_models" / file_of(name, kind)
            if not path.exists():
                continue
            try:
                done[name][kind] = compare(str(path))
            except Exception:
                done[name][kind] = {"error": traceback.format_exc()[-1500:]}
    (path, *_) = Path(folder).glob("diffusion_models/*flux.safetensors")
    done["a file"] = {"without room": {"is refused": is_refused_without_room(str(path))}}
    print(json.dumps(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
