"""A template's prompt, made so small that it runs in seconds without any of its files. Pure.

Samplers, guiders, schedules, patches of the MODEL and what prepares conditioning and latents stay,
with small sizes and few steps; loaders get a tiny model of the same family, LoRAs a tiny LoRA.
What would need a text encoder, an autoencoder, an image or a partner gets a stand-in of the tests.
What nothing can stand in for is left out, which is said.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.graphs import Node, Workflow, node
from harness.own_process.stock_format import file_of

from .flatten import Json, Prompt
from .judge import (
    SAMPLERS,
    Judgement,
    Model,
    input_type,
    is_link,
    loaders_of,
    outputs,
    switched,
    value_of,
)

log = logging.getLogger(__name__)

STEPS, SPLIT_STEPS = 2, 4  # where one sampler goes on from another one, both need some
KEPT = {"SIGMAS", "SAMPLER", "NOISE", "GUIDER", "LATENT_OPERATION"}
VALUES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
SCHEDULES = {"KSampler", "KSamplerAdvanced"}
LORAS = {"LoraLoader", "LoraLoaderModelOnly"}
# Patches that hold a model. Where there is no small one, a patch of the tests stands for them.
WITH_MODEL = {
    *("QwenImageDiffsynthControlnet", "ZImageFunControlnet", "USOStyleReference"),
    *("AnimaLLLiteApply", "WanInfiniteTalkToVideo"),
}
# Small models of such patches, by the family of the model: harness/adapter_pack/patch_models.py.
PATCH_MODELS = {
    **{"anima": "lllite", "qwen-image": "qwen", "wan-i2v": "talk, wide", "z-image": "z-image 2.1"},
}
# Nodes that look into an autoencoder.
LEFT_OUT = {"TripoSplatSamplingPreview"}
# Prompts that come with a picture: their text encoders add it to the conditioning.
WITH_REFERENCE = {
    *("TextEncodeQwenImageEdit", "TextEncodeQwenImageEditPlus", "TextEncodeBooguEdit"),
    *("TextEncodeJoyImageEdit", "TextEncodeMageFlowEdit", "TripoSplatConditioning"),
}
# How many pixels and frames a value of the latent stands for, where it is not 8 and 4.
SCALES = {
    **dict.fromkeys(("flux2", "lens", "ernie", "mage-flow", "ideogram4", "triposplat"), (16, 1)),
    **dict.fromkeys(("ltx", "ltx-av"), (32, 8)),
    **dict.fromkeys(("hunyuan-video-1.5", "hunyuan-video-sr"), (16, 4)),
    **dict.fromkeys(("wan22-5b", "wan22-5b-control", "wan22-5b-inpaint"), (16, 4)),
    **dict.fromkeys(("chroma-radiance", "pixeldit", "pid", "hidream-o1"), (1, 1)),
    "minimax-h3": (16, 4),
}
# What an image encoder gives: tokens and their width.
VISION = {
    **{"hunyuan3d": (19, 16), "hunyuan3d-2.1": (19, 1024)},
    **{"hunyuan-video-1.5": (9, 1152), "hunyuan-video-sr": (9, 1152)},
}
SIZES = {"width": -1, "height": -2, "target_width": -1, "target_height": -2}
CFGS = {"cfg", "cfg_conds", "cfg_cond2_negative"}
LENGTHS = {"length", "video_frames", "frames", "num_frames", "frames_number"}


class LackingError(Exception):
    """A node cannot be kept: it needs what nothing can stand in for."""


@dataclass
class Reduced:
    """A small prompt.

    Attributes:
        workflow: it, with a node that saves the latent of each sampler.
        samplers: those of the template, which have kept their names.
        left_out: what it is without.
    """

    workflow: Workflow = field(default_factory=dict)
    samplers: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def reduced(
    judgement: Judgement,
    object_info: Json,
    families: Mapping[str, Json],
    seed: int,
    cfg: float | None = None,
) -> Reduced:
    """The small prompt of a template.

    Args:
        judgement: of the template.
        object_info: the server's.
        families: what own_process/template_models.py printed.
        seed: of all noise; one that no other prompt has keeps ComfyUI from answering out of its
            cache.
        cfg: in place of the template's.
    """
    made = _Reduction(judgement, object_info, families, seed, cfg)
    for number, name in enumerate(judgement.samplers):
        link = made.kept(name, made.family_of(name))
        made.result.samplers.append(link)
        made.result.workflow[f"save {number}"] = node(
            "TestSaveLatent", samples=[link, 0], filename_prefix=f"templates/{seed}"
        )
    return made.result


class _Reduction:
    def __init__(
        self,
        judgement: Judgement,
        object_info: Json,
        families: Mapping[str, Json],
        seed: int,
        cfg: float | None,
    ) -> None:
        self.prompt: Prompt = judgement.prompt
        self.models = {model.node: model for model in judgement.models}
        self.object_info, self.families, self.seed, self.cfg = object_info, families, seed, cfg
        self.result = Reduced()
        self.is_split = any(
            one["class_type"] in ("SplitSigmas", "KSamplerAdvanced") for one in self.prompt.values()
        )
        self._kept: dict[str, str | LackingError] = {}
        self._stand_ins: dict[str, str] = {}

    def family_of(self, name: str) -> str:
        """The family of the model that a sampler gets."""
        for model in loaders_of(self.prompt, name, self.object_info):
            if model.family is not None:
                return model.family
        raise LackingError(f"the model of node {name}")

    # Nodes that stay

    def kept(self, name: str, family: str) -> str:
        """Keep a node with what it needs; its name.

        Raises:
            LackingError: it needs what there is none of.
        """
        before = self._kept.get(name)
        if isinstance(before, str):
            return before
        if before is not None:
            raise before
        self._kept[name] = LackingError(f"{self.prompt[name]['class_type']} leads to itself")
        try:
            self.result.workflow[name] = self._rebuilt(name, family)
        except LackingError as lacking:
            self._kept[name] = lacking
            raise
        self._kept[name] = name
        return name

    def _rebuilt(self, name: str, family: str) -> Node:
        one = self.prompt[name]
        kind = one["class_type"]
        if kind not in self.object_info or kind in LEFT_OUT:
            raise LackingError(kind)
        declared = self.object_info[kind]["input"]
        inputs = {}
        for key, value in one["inputs"].items():
            wanted = input_type(kind, key, self.object_info)
            if is_link(value):
                value = self.linked(value, wanted, family)
            if value is not None:
                inputs[key] = value
        for key, its in declared.get("required", {}).items():
            if key in inputs or any(other.startswith(f"{key}.") for other in inputs):
                continue
            options = its[1] if len(its) > 1 and isinstance(its[1], dict) else {}
            if "default" not in options:
                raise LackingError(f"the {key} of {kind}")
            inputs[key] = options["default"]
        return node(kind, **self._shrunk(name, kind, inputs, family))

    def _shrunk(self, name: str, kind: str, inputs: Json, family: str) -> Json:
        """Small sizes and few steps."""
        shape = self.families[family]["latent"][0]
        spatial, temporal = SCALES.get(family, (8, 4))
        steps = SPLIT_STEPS if self.is_split else STEPS
        original = value_of(self.prompt, self.prompt[name]["inputs"].get("steps"))
        for key, value in inputs.items():
            if key in SIZES:
                least = self._least(kind, key)
                inputs[key] = max(least, shape[SIZES[key]] * spatial)
            elif key in LENGTHS and len(shape) == 5:
                inputs[key] = (shape[2] - 1) * temporal + 1
            elif key in LENGTHS:
                inputs[key] = self.families[family].get("frames", 1)
            elif key in ("batch_size", "motion_frame_count"):
                inputs[key] = 1
            elif key in ("seed", "noise_seed"):
                inputs[key] = self.seed
            elif key in CFGS and self.cfg is not None:
                inputs[key] = self.cfg
            elif key == "steps" and isinstance(value, int | float):
                inputs[key] = min(steps, int(value))
            elif key in ("start_at_step", "end_at_step", "step") and isinstance(value, int | float):
                inputs[key] = self._scaled(name, kind, int(value), original, steps)
            elif key == "sigmas" and kind == "ManualSigmas":
                sigmas = re.findall(r"[-+]?\d*\.?\d+", str(value))
                few = sorted({round(n * (len(sigmas) - 1) / steps) for n in range(steps + 1)})
                inputs[key] = ", ".join(sigmas[n] for n in few)
        return inputs

    def _least(self, kind: str, key: str) -> int:
        """The smallest number that an input takes."""
        declared = self.object_info[kind]["input"]
        for section in ("required", "optional"):
            its = declared.get(section, {}).get(key)
            if its and len(its) > 1:
                return int(its[1].get("min", 0))
        return 0

    def _scaled(self, name: str, kind: str, step: int, original: Any, steps: int) -> int:
        """A step, in a run of fewer."""
        if kind == "SplitSigmas":
            original = self._longest()
        if not isinstance(original, int | float) or step >= 1000:
            return step
        scaled = round(step * steps / original)
        return min(max(scaled, 1), steps - 1) if 0 < step < original else scaled

    def _longest(self) -> int:
        """The steps of the schedule that is split."""
        every = [
            value_of(self.prompt, one["inputs"].get("steps"))
            for one in self.prompt.values()
            if "SIGMAS" in outputs(one["class_type"], self.object_info)
        ]
        return max((int(steps) for steps in every if isinstance(steps, int | float)), default=0)

    # What a link leads to

    def linked(self, link: list[Any], wanted: str, family: str) -> Any:
        """What an input gets in place of a link: a link, a value, or None."""
        name, slot = link
        if name not in self.prompt:
            return None
        one = self.prompt[name]
        kind = one["class_type"]
        if kind == "ComfySwitchNode":
            through = switched(self.prompt, name)
            return self.linked(through, wanted, family) if is_link(through) else through
        its = outputs(kind, self.object_info)
        given = its[slot] if slot < len(its) else wanted
        if given.startswith("COMFY_") or given == "*":
            given = wanted  # it has the type of an input
        if wanted in VALUES or given in VALUES:
            return value_of(self.prompt, link)
        if given == "MODEL":
            return self._model(name, slot, family)
        if given == "CONDITIONING":
            return self._conditioning(name, slot, family)
        if given == "LATENT":
            return self._latent(name, slot, family)
        if given in KEPT:
            return [self.kept(name, family), slot]
        return self._stand_in(given, family, is_audio="audio" in kind.lower())

    def _model(self, name: str, slot: int, family: str) -> Any:
        if name in self.models:
            return [self._loader(self.models[name]), 0]
        inputs = self.prompt[name]["inputs"]
        if self.prompt[name]["class_type"] in LORAS:
            if name not in self.result.workflow:
                self.result.workflow[name] = node(
                    "LoraLoaderModelOnly",
                    model=self.linked(inputs["model"], "MODEL", family),
                    lora_name=self.families[family].get("file", file_of(family, "fp32")),
                    strength_model=value_of(self.prompt, inputs.get("strength_model", 1.0)),
                )
            return [name, 0]
        if self.prompt[name]["class_type"] in WITH_MODEL and family not in PATCH_MODELS:
            model = self.linked(inputs["model"], "MODEL", family)
            self.result.workflow[name] = node("TestModelPatch", model=model)
            return [name, 0]
        return self._kept_or_passed(name, slot, "MODEL", family)

    def _loader(self, model: Model) -> str:
        assert model.family is not None
        family = self.families[model.family]
        if "file" in family:
            loader = node("TestDescribedModel", unet_name=family["file"])
        else:
            kind = model.kind if model.kind in family["formats"] else "fp32"
            file = file_of(model.family, kind)
            if model.loader == "UNETLoader":
                loader = node("UNETLoader", unet_name=file, weight_dtype="default")
            else:
                loader = node("CheckpointLoaderSimple", ckpt_name=file)
        self.result.workflow[model.node] = loader
        return model.node

    def _conditioning(self, name: str, slot: int, family: str) -> Any:
        kind = self.prompt[name]["class_type"]
        its = self._types_of(kind)
        if kind in WITH_REFERENCE or "CLIP" in its or kind not in self.object_info:
            return self._text(name, slot, family)
        passed = self._kept_or_passed(name, slot, "CONDITIONING", family)
        return self._text(name, slot, family) if passed is None else passed

    def _text(self, name: str, slot: int, family: str) -> list[Any]:
        its = self.families[family]
        # Each prompt has a number of its own.
        number = 1 + sum(one["class_type"] == "TestConditioning" for one in self._made())
        text = f"text {name} {slot} {family}"
        if text not in self.result.workflow:
            inputs = {"width": its["text"], "pooled": its.get("pooled", 0), "seed": number}
            inputs["masked"] = its.get("masked", False)
            inputs["more"] = json.dumps(its.get("more", {}))
            self.result.workflow[text] = node("TestConditioning", **inputs)
        kind = self.prompt[name]["class_type"]
        has_picture = any(
            is_link(v) for k, v in self.prompt[name]["inputs"].items() if "image" in k
        )
        if kind not in WITH_REFERENCE or not has_picture:
            return [text, 0]
        shape = [1, 128, 4, 4] if its.get("nested") else its["latent"][0]
        if len(shape) == 5:
            shape = [*shape[:2], 1, *shape[3:]]
        latent = self._added("TestLatent", shapes=json.dumps([shape]), number=self.seed)
        referring = f"reference {text}"
        self.result.workflow[referring] = node(
            "ReferenceLatent", conditioning=[text, 0], latent=latent
        )
        return [referring, 0]

    def _made(self) -> list[Node]:
        return list(self.result.workflow.values())

    def _latent(self, name: str, slot: int, family: str) -> Any:
        kind = self.prompt[name]["class_type"]
        its = self._types_of(kind)
        if kind in SAMPLERS:
            return [self.kept(name, self.family_of(name)), slot]
        if kind not in WITH_REFERENCE and "CLIP" not in its and its & {"CONDITIONING", "LATENT"}:
            passed = self._kept_or_passed(name, slot, "LATENT", family)
            if passed is not None:
                return passed
        shapes = self.families[family]["latent"]
        if not self.families[family].get("nested"):
            shapes = [shapes[-1] if "Audio" in kind else shapes[0]]
        return self._added("TestLatent", shapes=json.dumps(shapes), number=self.seed)

    def _types_of(self, kind: str) -> set[str]:
        declared = self.object_info.get(kind, {}).get("input", {})
        return {
            str(its[0])
            for section in ("required", "optional")
            for its in declared.get(section, {}).values()
        }

    def _kept_or_passed(self, name: str, slot: int, wanted: str, family: str) -> Any:
        """The node, or what it was to change; None where there is nothing of that type."""
        try:
            return [self.kept(name, family), slot]
        except LackingError as lacking:
            kind, inputs = self.prompt[name]["class_type"], self.prompt[name]["inputs"]
            log.debug("without %s: %s", kind, lacking)
            if kind not in self.result.left_out:
                self.result.left_out.append(kind)
            its = [n for n, out in enumerate(outputs(kind, self.object_info)) if out == wanted]
            fitting = [
                value
                for key, value in inputs.items()
                if is_link(value) and input_type(kind, key, self.object_info) == wanted
            ]
            if not fitting:
                if wanted == "MODEL":
                    raise lacking
                return None
            place = its.index(slot) if slot in its else 0
            return self.linked(fitting[min(place, len(fitting) - 1)], wanted, family)

    # What stands in

    def _added(self, kind: str, /, **inputs: Any) -> list[Any]:
        """A node of the tests, the same one for the same inputs."""
        key = json.dumps([kind, inputs], sort_keys=True)
        if key not in self._stand_ins:
            name = self._stand_ins[key] = f"stand-in {len(self._stand_ins)}"
            self.result.workflow[name] = node(kind, **inputs)
        return [self._stand_ins[key], 0]

    def _stand_in(self, kind: str, family: str, *, is_audio: bool) -> Any:
        its = self.families[family]
        shape = its["latent"][0]
        spatial, temporal = SCALES.get(family, (8, 4))
        size = {"width": shape[-1] * spatial, "height": shape[-1] * spatial}
        if kind == "MODEL_PATCH" and family in PATCH_MODELS:
            return self._added("TestPatchModel", kind=PATCH_MODELS[family])
        if kind == "IMAGE":
            return self._added("EmptyImage", **size, batch_size=1, color=0x3366CC)
        if kind == "MASK":
            return self._added("SolidMask", value=0.5, **size)
        if kind == "AUDIO":
            return self._added("EmptyAudio", duration=1.0, sample_rate=44100, channels=2)
        if kind == "VAE" and not is_audio:
            channels, dims = (128, 2) if its.get("nested") else (shape[1], len(shape) - 2)
            scales = {"spatial": spatial, "temporal": temporal if dims == 3 else 1}
            return self._added("TestVAE", channels=channels, dims=dims, **scales)
        if kind in ("CLIP_VISION", "CLIP_VISION_OUTPUT"):
            tokens, hidden = VISION.get(family, (257, 1280))
            sizes = {"tokens": tokens, "hidden": hidden, "image_size": 224}
            made = "TestClipVision" if kind == "CLIP_VISION" else "TestClipVisionOutput"
            return self._added(made, width=its.get("vision", 1280), **sizes)
        if kind == "AUDIO_ENCODER_OUTPUT":
            layers, width = its.get("audio", (3, 8))
            return self._added("TestAudioEncoderOutput", layers=layers, width=width, tokens=50)
        return None
