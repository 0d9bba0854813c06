"""What a template asks for: its models, its samplers, and what lies between them. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from asyncdiff_core.algorithm.schedule import AUTO_WARM_UP, AsyncSchedule

from .flatten import Json, Prompt

SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
FILE_INPUTS = ("unet_name", "ckpt_name")
DEVICES = 2

# By the name of the file, the first that fits: a family of own_process/template_models.py or of
# own_process/stock_format.py. None: there is no tiny model of it.
FAMILIES: tuple[tuple[str, str | None], ...] = (
    (r"v1-5|dreamshaper", "sd15"),
    (r"sd_xl_refiner", "sdxl-refiner"),
    (r"sd_xl", "sdxl"),
    (r"lotus", "lotus"),
    (r"svd", "svd"),
    (r"sd3", "sd3"),
    (r"flux.?1.?fill", "flux-fill"),
    (r"flux1-canny", "flux-canny"),
    (r"flux1-schnell", "flux-schnell"),
    (r"pid_", "pid"),
    (r"flux.?1", "flux"),
    (r"flux.?2", "flux2"),
    (r"longcat", "longcat"),
    (r"ovis", "ovis"),
    (r"chroma-radiance", "chroma-radiance"),
    (r"chroma", "chroma"),
    (r"qwen_image_layered", "qwen-image-layered"),
    (r"qwen_image|firered", "qwen-image"),
    (r"mage_flow", "mage-flow"),
    (r"netayume", "lumina2"),
    (r"newbie", "newbie"),
    (r"z_image", "z-image"),
    (r"hidream_o1", "hidream-o1"),
    (r"hidream", "hidream"),
    (r"omnigen2", "omnigen2"),
    (r"boogu", "boogu"),
    (r"anima", "anima"),
    (r"ernie", "ernie"),
    (r"ideogram4", "ideogram4"),
    (r"pixeldit", "pixeldit"),
    (r"kandinsky5lite_t2i", "kandinsky-image"),
    (r"kandinsky", "kandinsky"),
    (r"krea2", "krea2"),
    (r"joyai", "joyimage"),
    (r"lens", "lens"),
    (r"seedvr2", "seedvr2"),
    (r"triposplat", "triposplat"),
    (r"hunyuan_3d_v2\.1", "hunyuan3d-2.1"),
    (r"hunyuan3d", "hunyuan3d"),
    (r"void_pass", "cogvideox-inpaint"),
    (r"hunyuanvideo1\.5.*_sr", "hunyuan-video-sr"),
    (r"hunyuanvideo1\.5|capybara", "hunyuan-video-1.5"),
    (r"hunyuan_video", "hunyuan-video"),
    (r"ltx-2", "ltx-av"),
    (r"ltx", "ltx"),
    (r"minimax", "minimax-h3"),
    (r"causal_forcing", "wan-causal"),
    (r"vace", "vace"),
    (r"dancer", "wan-dancer"),
    (r"scail", "wan-scail2"),
    (r"humo", "wan-humo"),
    (r"s2v", "wan-s2v"),
    (r"wan2\.2_fun_camera", "wan22-camera"),
    (r"wan2\.1_fun_camera", "wan-camera"),
    (r"wan2\.2_fun_control_5b", "wan22-5b-control"),
    (r"wan2\.2_fun_inpaint_5b", "wan22-5b-inpaint"),
    (r"wan2\.2_ti2v_5b", "wan22-5b"),
    (r"wan2\.2_fun_control", "wan22-control"),
    (r"wan2\.1_fun_control", "wan-control"),
    (r"wan2\.2_i2v|wan2\.2_fun_inpaint", "wan22-i2v"),
    (r"i2v|flf2v|fun_inp|chrono|wanmove", "wan-i2v"),
    (r"bernini|wan", "wan-t2v"),
    (r"ace_?step.?v1\.5|ace_step_1\.5", "ace-step-1.5"),
    (r"ace_step", "ace-step"),
    (r"stable_audio_3", "stable-audio-3"),
    (r"stable-audio", "stable-audio"),
)
# What the name of a file says of its format, and the format of formats.py that comes nearest.
FORMATS = (
    (r"int8", "int8", "int8"),
    (r"fp8_scaled|fp8_e4m3fn_scaled|fp8mixed|scaled_e4m3fn", "fp8 scaled", "comfy_quant fp8"),
    (r"fp8", "fp8", "fp8"),
    (r"bf16", "bf16", "bf16"),
    (r"fp16|_f16", "fp16", "fp32"),
)


@dataclass(frozen=True)
class Model:
    """A node that loads one.

    Attributes:
        format: what the name of the file says, or nothing.
        kind: the format in which a tiny one of the family is written.
    """

    node: str
    loader: str
    file: str
    family: str | None
    format: str
    kind: str


@dataclass
class Judgement:
    """What is known of a template without running it.

    Attributes:
        prompt: what it becomes.
        models: what its samplers run, in the order of the nodes.
        samplers: the nodes, and how many evaluations each makes, or None where that is not written
            in the file.
        patches: the classes between loaders and samplers.
        lacking: why it samples nothing, or why it can not be tried here.
    """

    prompt: Prompt
    models: list[Model] = field(default_factory=list)
    samplers: dict[str, int | None] = field(default_factory=dict)
    patches: list[str] = field(default_factory=list)
    partner: bool = False
    lacking: str = ""

    @property
    def steps(self) -> list[int]:
        return [steps for steps in self.samplers.values() if steps is not None]

    @property
    def ideal_gain(self) -> float | None:
        """On two devices with the default warm-up, if all else took no time."""
        if not self.steps or len(self.steps) < len(self.samplers):
            return None
        return sum(self.steps) / sum(map(shortened, self.steps))


def shortened(steps: int) -> float:
    """How many synchronous evaluations take as long as a run of `steps` on two devices."""
    warm_up = min(steps, AsyncSchedule(AUTO_WARM_UP).for_steps(steps).warm_up)
    return warm_up + (steps - warm_up) / DEVICES


def judge(prompt: Prompt, object_info: Json, partner_nodes: Collection[str]) -> Judgement:
    """The judgement of a prompt.

    Args:
        prompt: as `flatten` gives it.
        object_info: the server's.
        partner_nodes: classes of nodes that ask a service.
    """
    found = Judgement(prompt)
    found.partner = any(one["class_type"] in partner_nodes for one in prompt.values())
    for node, one in prompt.items():
        if one["class_type"] not in SAMPLERS:
            continue
        for model in loaders_of(prompt, node, object_info, found.patches):
            if model not in found.models:
                found.models.append(model)
        found.samplers[node] = evaluations_of(prompt, node)
    if not found.samplers:
        found.lacking = "samples no model here"
    elif not found.models:
        found.lacking = "its samplers have no loader that ComfyUI knows"
    else:
        untold = [model.file for model in found.models if model.family is None]
        if untold:
            found.lacking = f"no tiny model of the kind of {', '.join(untold)}"
    return found


def model_of(prompt: Prompt, node: str) -> Model:
    one = prompt[node]
    file = next((str(one["inputs"][key]) for key in FILE_INPUTS if key in one["inputs"]), "")
    name = file.lower()
    family = next((family for pattern, family in FAMILIES if re.search(pattern, name)), None)
    _, told, kind = next((f for f in FORMATS if re.search(f[0], name)), ("", "", "fp32"))
    return Model(node, one["class_type"], file, family, told, kind)


def loaders_of(
    prompt: Prompt, node: str, object_info: Json, patches: list[str] | None = None
) -> Iterator[Model]:
    """The models that a node gets; adds the classes on the way to `patches`."""
    for link in model_links(prompt, node, object_info):
        origin = link[0]
        kind = prompt[origin]["class_type"]
        if kind == "ComfySwitchNode":
            yield from loaders_of(prompt, origin, object_info, patches)
        elif any(model_links(prompt, origin, object_info)):
            if (
                patches is not None
                and kind not in patches
                and "MODEL" in outputs(kind, object_info)
            ):
                patches.append(kind)
            yield from loaders_of(prompt, origin, object_info, patches)
        elif any(key in prompt[origin]["inputs"] for key in FILE_INPUTS):
            yield model_of(prompt, origin)


def outputs(kind: str, object_info: Json) -> list[str]:
    return list(map(str, object_info.get(kind, {}).get("output", ())))


def input_type(kind: str, name: str, object_info: Json) -> str:
    """The type of an input by its name, or nothing."""
    for section in ("required", "optional"):
        its = object_info.get(kind, {}).get("input", {}).get(section, {}).get(name)
        if its:
            return "COMBO" if isinstance(its[0], list) else str(its[0])
    return ""


def model_links(prompt: Prompt, node: str, object_info: Json) -> Iterator[list[Any]]:
    """The links by which models come into a node, and guiders that hold them."""
    one = prompt[node]
    if one["class_type"] == "ComfySwitchNode":
        link = switched(prompt, node)
        yield from [link] if link is not None else []
        return
    for name, value in one["inputs"].items():
        kind = input_type(one["class_type"], name, object_info)
        if is_link(value) and value[0] in prompt and kind in ("MODEL", "GUIDER"):
            yield value


def is_link(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
    )


def switched(prompt: Prompt, node: str) -> Any:
    """What a switch lets through."""
    inputs = prompt[node]["inputs"]
    way = "on_true" if value_of(prompt, inputs.get("switch")) else "on_false"
    return inputs.get(way)


def value_of(prompt: Prompt, value: Any) -> Any:
    """The number or text that an input gets, or None where only a run tells it."""
    if not is_link(value):
        return value
    node, slot = value
    if node not in prompt:
        return None
    kind, inputs = prompt[node]["class_type"], prompt[node]["inputs"]
    if kind == "ComfySwitchNode":
        return value_of(prompt, switched(prompt, node))
    if kind.startswith("Primitive"):
        return value_of(prompt, inputs.get("value"))
    if kind == "CustomCombo":
        return inputs.get("choice") if slot == 0 else None
    if kind == "StringReplace":
        text, old, new = (value_of(prompt, inputs.get(k)) for k in ("string", "find", "replace"))
        return str(text).replace(str(old), str(new)) if text is not None else None
    if kind == "JsonExtractString":
        text, key = (value_of(prompt, inputs.get(k)) for k in ("json_string", "key"))
        try:
            return json.loads(text).get(key)
        except (TypeError, ValueError, AttributeError):
            return None
    if kind == "ComfyNumberConvert":
        try:
            number = float(value_of(prompt, inputs.get("value")))
        except (TypeError, ValueError):
            return None
        return int(number) if slot == 1 else number
    return None


def evaluations_of(prompt: Prompt, node: str) -> int | None:
    """How many evaluations of its model a sampler node makes.

    All samplers of the templates make one in a step.
    """
    one = prompt[node]
    inputs = one["inputs"]
    if one["class_type"] == "KSampler":
        return _whole(prompt, inputs.get("steps"))
    if one["class_type"] == "KSamplerAdvanced":
        steps = _whole(prompt, inputs.get("steps"))
        start, end = (_whole(prompt, inputs.get(k)) for k in ("start_at_step", "end_at_step"))
        if steps is None or start is None or end is None:
            return None
        return max(0, min(steps, end) - start)
    return sigmas_of(prompt, inputs.get("sigmas"))


def sigmas_of(prompt: Prompt, link: Any) -> int | None:
    """The steps of a schedule."""
    if not is_link(link) or link[0] not in prompt:
        return None
    kind, inputs = prompt[link[0]]["class_type"], prompt[link[0]]["inputs"]
    if kind == "ComfySwitchNode":
        return sigmas_of(prompt, switched(prompt, link[0]))
    if kind == "ManualSigmas":
        text = value_of(prompt, inputs.get("sigmas"))
        return None if text is None else len(re.findall(r"[-+]?\d*\.?\d+", str(text))) - 1
    if kind == "SplitSigmas":
        whole, first = sigmas_of(prompt, inputs.get("sigmas")), _whole(prompt, inputs.get("step"))
        if whole is None or first is None:
            return None
        return min(first, whole) if link[1] == 0 else max(0, whole - first)
    if "steps" in inputs:
        steps = _whole(prompt, inputs["steps"])
        if kind == "SDTurboScheduler" and steps is not None:
            return math.ceil(steps * float(inputs.get("denoise", 1.0)))
        return steps
    return sigmas_of(prompt, inputs.get("sigmas"))


def _whole(prompt: Prompt, value: Any) -> int | None:
    number = value_of(prompt, value)
    return int(number) if isinstance(number, int | float) and number == number else None
