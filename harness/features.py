"""What people do to models, as changes to a workflow, and what becomes of each on our MODEL.

`FEATURES` is the table behind test_features.py and docs/compatibility.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import checkpoints
from .comfy_server import ComfyServer, PromptFailed
from .graphs import Workflow, node, resampled
from .lab import SIDE, asyncdiff, latent, latent_once, workflow

Change = Callable[[Workflow], Workflow]
STEPS = 3


@dataclass(frozen=True)
class Feature:
    """One row.

    Attributes:
        name: what people call it, with the nodes in it.
        kind: which model of lab.py it is tried on.
        change: the stock workflow with it.
        refusal: a part of the error that names it, or None where the result is exact.
        steps: of the sampler; caches want some more.
        base: the workflow that it is compared with, to see that it does something.
        spread: what makes the same workflow with our MODEL of it.
    """

    name: str
    kind: str
    change: Change
    refusal: str | None = None
    steps: int = STEPS
    base: Change = staticmethod(lambda flow: flow)  # noqa: RUF009 - nothing that could change
    spread: Change = staticmethod(lambda flow: asyncdiff(flow, warm_up=100))  # noqa: RUF009


def write_files(models: Path) -> None:
    """The files that features need besides those of lab.write_models."""
    wide = ((1, 1), (2, 1))
    checkpoints.write_sd15(models / "checkpoints" / "tiny-wide.safetensors", levels=wide)
    controls = models / "controlnet"
    checkpoints.write_controlnet(controls / "tiny-control.safetensors")
    checkpoints.write_control_lora(controls / "tiny-control-lora.safetensors")
    checkpoints.write_t2i_adapter(controls / "tiny-t2i.pth")
    checkpoints.write_sd3_controlnet(controls / "tiny-sd3-control.safetensors")
    checkpoints.write_flux_controlnet(controls / "tiny-flux-control.safetensors")
    checkpoints.write_sd15(models / "checkpoints" / "tiny-inpaint.safetensors", channels=9)
    checkpoints.write_flux(models / "diffusion_models" / "tiny-flux.safetensors")
    folder = models / "animatediff_models"
    folder.mkdir(exist_ok=True)
    checkpoints.write_motion(folder / "tiny-motion.safetensors")
    checkpoints.write_lora(models / "loras" / "tiny-sd3-lora.safetensors", model="sd3")
    for kind in checkpoints.LORA_KINDS:
        checkpoints.write_lora_kind(models / "loras" / f"tiny-{kind}.safetensors", kind)


def outcome(lab: ComfyServer, feature: Feature) -> str:
    """``exact`` or ``refused``, as tried now.

    Raises:
        AssertionError: it is neither, or not what the table says.
    """
    plain = feature.base(workflow(feature.kind, steps=feature.steps))
    flow = feature.change(plain)
    if feature.refusal is None:
        stock = latent(lab, flow)
        assert torch.isfinite(stock).all(), feature.name
        assert not _equal(stock, latent_once(lab, plain)), f"{feature.name} does nothing"
        assert _equal(latent(lab, feature.spread(flow)), stock), feature.name
        return "exact"
    try:
        latent(lab, feature.spread(flow))
    except PromptFailed as error:
        text = error.exception_message
        assert feature.refusal in text, text
        return "refused"
    raise AssertionError(f"{feature.name} is not refused")


def _equal(some: torch.Tensor, other: torch.Tensor) -> bool:
    return some.shape == other.shape and torch.equal(some, other)


def patched(class_type: str, **inputs: Any) -> Change:
    """A node between the model and the sampler."""

    def change(flow: Workflow) -> Workflow:
        model = flow["sampler"]["inputs"]["model"]
        number = f"patch-{len(flow)}"
        more = {**flow, number: node(class_type, model=model, **inputs)}
        return resampled(more, model=[number, 0])

    return change


def chain(*changes: Change) -> Change:
    def change(flow: Workflow) -> Workflow:
        for each in changes:
            flow = each(flow)
        return flow

    return change


def loaded(**inputs: Any) -> Change:
    """Other inputs of the loader."""

    def change(flow: Workflow) -> Workflow:
        stock = flow["model"]
        return {**flow, "model": node(stock["class_type"], **{**stock["inputs"], **inputs})}

    return change


def lora(file: str, strength: float = 1.0) -> Change:
    return patched("LoraLoaderModelOnly", lora_name=file, strength_model=strength)


def controlled(*strengths: float, file: str = "tiny-control.safetensors", **inputs: Any) -> Change:
    """ControlNets, one after the other. `inputs` are more of the node that applies them."""

    def change(flow: Workflow) -> Workflow:
        flow = {**flow, "control": node("ControlNetLoader", control_net_name=file)}
        positive, negative = ["positive", 0], ["negative", 0]
        for number, strength in enumerate(strengths):
            color = 0x3366CC >> 4 * number
            flow[f"hint-{number}"] = node(
                "EmptyImage", width=SIDE, height=SIDE, batch_size=1, color=color
            )
            flow[f"apply-{number}"] = node(
                "ControlNetApplyAdvanced",
                positive=positive,
                negative=negative,
                control_net=["control", 0],
                image=[f"hint-{number}", 0],
                strength=strength,
                start_percent=0.0,
                end_percent=1.0 - 0.4 * number,
                **inputs,
            )
            positive, negative = [f"apply-{number}", 0], [f"apply-{number}", 1]
        return resampled(flow, positive=positive, negative=negative)

    return change


def masked(flow: Workflow) -> Workflow:
    """A noise mask with soft values on the left half."""
    area = node("SolidMask", value=0.6, width=SIDE // 2, height=SIDE)
    whole = node("SolidMask", value=0.0, width=SIDE, height=SIDE)
    mask = node(
        "MaskComposite", destination=["whole", 0], source=["area", 0], x=0, y=0, operation="add"
    )
    flow = {**flow, "area": area, "whole": whole, "mask": mask}
    flow["masked"] = node("SetLatentNoiseMask", samples=["empty", 0], mask=["mask", 0])
    return resampled(flow, latent_image=["masked", 0], denoise=0.8)


def inpainted(flow: Workflow) -> Workflow:
    """A model with nine input channels."""
    flow = chain(loaded(ckpt_name="tiny-inpaint.safetensors"), masked)(flow)
    flow["picture"] = node("EmptyImage", width=SIDE, height=SIDE, batch_size=1, color=0x336699)
    flow["conditioned"] = node(
        "InpaintModelConditioning",
        positive=["positive", 0],
        negative=["negative", 0],
        vae=["model", 2],
        pixels=["picture", 0],
        mask=["mask", 0],
        noise_mask=True,
    )
    return resampled(
        flow,
        positive=["conditioned", 0],
        negative=["conditioned", 1],
        latent_image=["conditioned", 2],
    )


def hooked(*keyframes: tuple[float, float]) -> Change:
    """Different LoRAs on the two conditionings.

    `keyframes`, (strength, from which part of the run), are those of the positive one.
    """

    def change(flow: Workflow) -> Workflow:
        flow = dict(flow)
        for name, file, strength in (
            ("positive", "tiny-sd15-lora.safetensors", 1.0),
            ("negative", "tiny-lokr.safetensors", 0.6),
        ):
            strengths = {"strength_model": strength, "strength_clip": 0.0}
            flow[f"{name} hook"] = node("CreateHookLora", lora_name=file, **strengths)
        hooks, before = ["positive hook", 0], {}
        for number, (strength, start) in enumerate(keyframes):
            when = {"strength_mult": strength, "start_percent": start}
            flow[f"keyframe-{number}"] = node("CreateHookKeyframe", **when, **before)
            before = {"prev_hook_kf": [f"keyframe-{number}", 0]}
        if keyframes:
            hook_kf = before["prev_hook_kf"]
            flow["scheduled"] = node("SetHookKeyframes", hooks=hooks, hook_kf=hook_kf)
            hooks = ["scheduled", 0]
        for name, its_hooks in (("positive", hooks), ("negative", ["negative hook", 0])):
            flow[f"{name} hooked"] = node(
                "ConditioningSetProperties",
                cond_NEW=[name, 0],
                strength=1.0,
                set_cond_area="default",
                hooks=its_hooks,
            )
        return resampled(flow, positive=["positive hooked", 0], negative=["negative hooked", 0])

    return change


def skipping(layers: str, start: float, end: float) -> Change:
    """Skip Layer Guidance in a part of the run: one cond more, with blocks left out."""
    part = {"start_percent": start, "end_percent": end}
    which = {"double_layers": layers, "single_layers": ""}
    return patched("SkipLayerGuidanceDiTSimple", **which, **part)


def windows(length: int, overlap: int, **inputs: Any) -> Change:
    """Context windows. `inputs` are `dim` and `causal_window_fix`."""
    size = {"context_length": length, "context_overlap": overlap}
    return patched("ContextWindowsManual", **size, **WINDOWS, **inputs)


def added(**nodes: dict[str, Any]) -> Change:
    return lambda flow: {**flow, **nodes}


def conditioned(class_type: str, on: str = "positive", **inputs: Any) -> Change:
    """A node between a prompt and the sampler."""

    def change(flow: Workflow) -> Workflow:
        number = f"conditioned-{len(flow)}"
        before = flow["sampler"]["inputs"][on]
        flow = {**flow, number: node(class_type, conditioning=before, **inputs)}
        return resampled(flow, **{on: [number, 0]})

    return change


def combined(*changes: Change) -> Change:
    """The positive prompt with each of these changes, and with none, all of them combined."""

    def change(flow: Workflow) -> Workflow:
        before = flow["sampler"]["inputs"]["positive"]
        all_of_them = before
        for each in changes:
            flow = each(resampled(flow, positive=before))
            another = flow["sampler"]["inputs"]["positive"]
            number = f"combined-{len(flow)}"
            both = {"conditioning_1": all_of_them, "conditioning_2": another}
            flow[number] = node("ConditioningCombine", **both)
            all_of_them = [number, 0]
        return resampled(flow, positive=all_of_them)

    return change


def custom(flow: Workflow) -> Workflow:
    """SamplerCustomAdvanced with CFGGuider in place of KSampler."""
    old = flow["sampler"]["inputs"]
    prompts = {"positive": old["positive"], "negative": old["negative"]}
    steps = {"scheduler": old["scheduler"], "steps": old["steps"], "denoise": 1.0}
    return {
        **flow,
        "noise": node("RandomNoise", noise_seed=4),
        "guider": node("CFGGuider", model=old["model"], cfg=4.0, **prompts),
        "kind": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=old["model"], **steps),
        "sampler": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["kind", 0],
            sigmas=["sigmas", 0],
            latent_image=old["latent_image"],
        ),
    }


def guided(class_type: str, sampler_name: str = "euler", **inputs: Any) -> Change:
    """Another guider and sampler in the workflow of `custom`."""

    def change(flow: Workflow) -> Workflow:
        model = flow["guider"]["inputs"]["model"]
        kind = node("KSamplerSelect", sampler_name=sampler_name)
        return {**flow, "guider": node(class_type, model=model, **inputs), "kind": kind}

    return change


def frames(number: int, size: int = 64) -> Change:
    """A batch of latents."""

    def change(flow: Workflow) -> Workflow:
        empty = node("EmptyLatentImage", width=size, height=size, batch_size=number)
        return {**flow, "empty": empty}

    return change


def parallelized(flow: Workflow) -> Workflow:
    """AsyncDiffParallelize and AsyncDiffSchedule behind everything that concerns the model."""
    user = "guider" if "guider" in flow else "sampler"
    inputs = flow[user]["inputs"]
    plan = {"devices": "cpu,cpu", "stages": 0, "replicas": 0, "stride": 1}
    return {
        **flow,
        "spread": node("AsyncDiffParallelize", model=inputs["model"], **plan),
        "schedule": node("AsyncDiffSchedule", model=["spread", 0], warm_up=100, time_shift=False),
        user: node(flow[user]["class_type"], **{**inputs, "model": ["schedule", 0]}),
    }


def merged(flow: Workflow) -> Workflow:
    """With a second MODEL, which has a LoRA."""
    with_lora = lora("tiny-sd15-lora.safetensors")(flow)
    second = with_lora["sampler"]["inputs"]["model"]
    merge = node("ModelMergeSimple", model1=["model", 0], model2=second, ratio=0.3)
    return resampled({**with_lora, "merge": merge}, model=["merge", 0])


LORA = lora("tiny-loha.safetensors", 0.4)
VIDEO = added(empty=node("EmptyHunyuanLatentVideo", width=96, height=96, length=21, batch_size=1))
WINDOWS = {
    "context_schedule": "standard_static",
    "context_stride": 1,
    "closed_loop": False,
    "fuse_method": "pyramid",
    "freenoise": False,
    "cond_retain_index_list": "",
    "split_conds_to_windows": False,
    "latent_retain_index_list": "",
}
FRAMES = frames(2)
MOTION = patched("AsyncDiffMotionModule", motion_model="tiny-motion.safetensors")
WIDE = loaded(ckpt_name="tiny-wide.safetensors")  # for FreeU, ToMe
LARGE = added(empty=node("EmptyLatentImage", width=128, height=128, batch_size=1))
# Two blocks, a part of a third one, and what comes before all blocks.
WAN_KEYS = " ".join(
    f"diffusion_model.{part}" for part in ("blocks.0", "blocks.3", "blocks.1.ffn", "time_embedding")
)
SD15_KEY = "diffusion_model.middle_block.1.transformer_blocks.0"
FREEU = patched("FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2)
CACHE = {"reuse_threshold": 3.0, "start_percent": 0.1, "end_percent": 0.95, "verbose": False}

FEATURES = (
    Feature("ControlNet", "sd15", controlled(0.8)),
    Feature("ControlNet, several, with ranges of steps", "sd15", controlled(0.8, 0.5)),
    Feature(
        "ControlNet (diffusers), with an autoencoder",
        "sd3",
        controlled(0.8, file="tiny-sd3-control.safetensors", vae=["text", 2]),
    ),
    Feature("ControlNet (XLabs)", "flux", controlled(0.8, file="tiny-flux-control.safetensors")),
    Feature(
        "ControlNet that takes weights of the MODEL (Control-LoRA)",
        "sd15",
        controlled(0.8, file="tiny-control-lora.safetensors"),
    ),
    Feature("T2I adapter", "sd15", controlled(0.8, file="tiny-t2i.pth")),
    Feature("FreeU", "sd15", patched("FreeU", b1=1.1, b2=1.2, s1=0.9, s2=0.2), base=WIDE),
    Feature("FreeU V2", "sd15", FREEU, base=WIDE),
    Feature("attention replaced as by IP-Adapter", "sd15", patched("TestImageAdapter", weight=0.7)),
    Feature(
        "the same with UNetCrossAttentionMultiply, ControlNet and LoRA",
        "sd15",
        chain(
            patched("TestImageAdapter", weight=0.7),
            patched("UNetCrossAttentionMultiply", q=1.1, k=0.9, v=1.2, out=1.0),
            lora("tiny-sd15-lora.safetensors"),
            controlled(0.8),
        ),
    ),
    Feature(
        "Perturbed-Attention Guidance", "sd15", patched("PerturbedAttentionGuidance", scale=3.0)
    ),
    Feature(
        "Skip Layer Guidance (DiT)",
        "sd3",
        patched(
            "SkipLayerGuidanceDiT",
            double_layers="3",
            single_layers="",
            scale=3.0,
            start_percent=0.0,
            end_percent=1.0,
            rescaling_scale=0.0,
        ),
    ),
    Feature(
        "Skip Layer Guidance (DiT, simple), several layers",
        "wan",
        skipping(layers="0, 5, 6, 11", start=0.0, end=1.0),
    ),
    Feature(
        "Self-Attention Guidance",
        "sd15",
        patched("SelfAttentionGuidance", scale=0.5, blur_sigma=2.0),
        refusal="SelfAttentionGuidance.execute.<locals>.attn_and_record",
    ),
    Feature(
        "Normalized Attention Guidance",
        "sd15",
        patched("NAGuidance", nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5),
    ),
    Feature(
        "HyperTile, swap_size 1",
        "sd15",
        patched("HyperTile", tile_size=32, swap_size=1, max_depth=1, scale_depth=False),
        base=LARGE,
    ),
    Feature(
        "HyperTile, random tiles",
        "sd15",
        patched("HyperTile", tile_size=32, swap_size=4, max_depth=1, scale_depth=False),
        refusal="draws random numbers",
        base=LARGE,
    ),
    Feature(
        "ToMe (TomePatchModel)",
        "sd15",
        patched("TomePatchModel", ratio=0.5),
        refusal="TomePatchModel",
        base=WIDE,
    ),
    Feature(
        "PatchModelAddDownscale (Kohya Deep Shrink)",
        "sd15",
        patched(
            "PatchModelAddDownscale",
            block_number=2,
            downscale_factor=2.0,
            start_percent=0.0,
            end_percent=1.0,
            downscale_after_skip=True,
            downscale_method="bicubic",
            upscale_method="bicubic",
        ),
    ),
    Feature(
        "UNetCrossAttentionMultiply",
        "sd15",
        patched("UNetCrossAttentionMultiply", q=1.1, k=0.9, v=1.2, out=1.0),
    ),
    Feature("RescaleCFG", "sd15", patched("RescaleCFG", multiplier=0.7)),
    Feature("FreSca", "sd15", patched("FreSca", scale_low=1.0, scale_high=1.5, freq_cutoff=2)),
    Feature("CFGZeroStar", "sd3", patched("CFGZeroStar")),
    Feature("APG", "sd3", patched("APG", eta=1.0, norm_threshold=5.0, momentum=0.1)),
    Feature("noise mask, denoise below 1", "sd15", masked),
    Feature(
        "Differential Diffusion",
        "sd15",
        chain(masked, patched("DifferentialDiffusion")),
    ),
    Feature("inpaint model (nine channels)", "sd15", inpainted),
    Feature(
        "prompts for areas, masks and ranges of steps",
        "sd15",
        chain(
            added(left=node("SolidMask", value=1.0, width=128, height=128)),
            combined(
                conditioned("ConditioningSetArea", width=64, height=128, x=64, y=0, strength=0.7),
                conditioned(
                    "ConditioningSetMask", mask=["left", 0], strength=0.5, set_cond_area="default"
                ),
                conditioned("ConditioningSetTimestepRange", start=0.0, end=0.5),
            ),
        ),
        base=LARGE,
    ),
    Feature(
        "a batch of latents",
        "sd15",
        added(empty=node("EmptyLatentImage", width=SIDE, height=SIDE // 2, batch_size=3)),
    ),
    Feature("SamplerCustomAdvanced with CFGGuider", "sd15", custom, spread=parallelized),
    Feature(
        "the same with PerpNegGuider and a CFG++ sampler",
        "sd15",
        guided(
            "PerpNegGuider",
            "euler_cfg_pp",
            positive=["positive", 0],
            negative=["negative", 0],
            empty_conditioning=["negative", 0],
            cfg=4.0,
            neg_scale=0.7,
        ),
        base=custom,
        spread=parallelized,
    ),
    Feature(
        "the same with DualCFGGuider",
        "sd3",
        guided(
            "DualCFGGuider",
            cond1=["positive", 0],
            cond2=["negative", 0],
            negative=["negative", 0],
            cfg_conds=3.0,
            cfg_cond2_negative=2.0,
            style="regular",
        ),
        base=custom,
        spread=parallelized,
    ),
    Feature("FluxGuidance", "flux", conditioned("FluxGuidance", guidance=9.0)),
    Feature(
        "reference latents (Flux Kontext)",
        "flux",
        chain(
            added(reference=node("EmptySD3LatentImage", width=64, height=96, batch_size=1)),
            conditioned("ReferenceLatent", latent=["reference", 0]),
            conditioned("ReferenceLatent", "negative", latent=["reference", 0]),
        ),
    ),
    Feature(
        "context windows of a long video",
        "wan",
        windows(4, 2, dim=2, causal_window_fix=True),
        base=VIDEO,
    ),
    Feature("a merge of two MODELs, then Parallelize Model", "sd15", merged, spread=parallelized),
    Feature(
        "saving the MODEL (ModelSave)",
        "sd15",
        added(save=node("ModelSave", model=["model", 0], filename_prefix="diffusion_models/x")),
        refusal="cannot be saved",
    ),
    Feature("EasyCache", "wan", patched("EasyCache", **CACHE), steps=8),
    Feature("LazyCache", "wan", patched("LazyCache", **CACHE), steps=8),
    Feature(
        "ModelSamplingDiscrete (v-prediction, zero SNR)",
        "sd15",
        patched("ModelSamplingDiscrete", sampling="v_prediction", zsnr=True),
    ),
    Feature("ModelSamplingSD3", "wan", patched("ModelSamplingSD3", shift=5.0)),
    Feature(
        "ScaleROPE",
        "wan",
        patched(
            "ScaleROPE", scale_x=1.5, shift_x=0.5, scale_y=1.0, shift_y=0.0, scale_t=1.0, shift_t=0
        ),
    ),
    *(
        Feature(f"LoRA of the kind {kind}", "sd15", lora(f"tiny-{kind}.safetensors"))
        for kind in checkpoints.LORA_KINDS
    ),
    Feature("LoRA of the kind lora", "sd3", lora("tiny-sd3-lora.safetensors")),
    Feature(
        "several LoRAs",
        "sd15",
        chain(
            lora("tiny-sd15-lora.safetensors", 0.7),
            lora("tiny-lokr.safetensors", 0.5),
            lora("tiny-loha.safetensors", -0.5),
        ),
    ),
    Feature(
        "LoRA hooks, another on each conditioning",
        "sd15",
        hooked(),
        base=LORA,
    ),
    Feature(
        "LoRA hooks with keyframes",
        "sd15",
        hooked((1.0, 0.0), (0.3, 0.5), (0.0, 0.9)),
        steps=5,
        base=chain(LORA, hooked()),
    ),
    Feature("weight_dtype fp8_e4m3fn", "wan", loaded(weight_dtype="fp8_e4m3fn")),
    Feature("weight_dtype fp8_e5m2", "sd3", loaded(weight_dtype="fp8_e5m2")),
    Feature("AnimateDiff motion modules", "sd15", chain(FRAMES, MOTION), base=FRAMES),
    Feature(
        "AnimateDiff with more frames than its motion modules know",
        "sd15",
        chain(frames(3), MOTION),
        refusal="knows 2 frames",
    ),
    Feature(
        "AnimateDiff in context windows (dim 0), with LoRA",
        "sd15",
        chain(MOTION, LORA, windows(2, 1, dim=0, causal_window_fix=False)),
        base=frames(4),
    ),
    Feature(
        "torch.compile of blocks, with LoRA",
        "wan",
        chain(
            patched("TestTorchCompile", backend="scaled", keys=WAN_KEYS),
            lora("tiny-wan-lora.safetensors"),
        ),
    ),
    Feature(
        "torch.compile of a block, with attention replaced in it",
        "sd15",
        patched("TestTorchCompile", backend="scaled", keys=SD15_KEY),
        base=patched("TestImageAdapter", weight=0.7),
    ),
    Feature(
        "torch.compile of the whole model (eager), with FreeU and attention replaced",
        "sd15",
        chain(
            patched("TestTorchCompile", backend="eager", keys="diffusion_model"),
            patched("TestImageAdapter", weight=0.7),
            FREEU,
        ),
        base=WIDE,
    ),
    Feature(
        "torch.compile of blocks, with Skip Layer Guidance that begins and ends within the run",
        "wan",
        skipping(layers="0, 5, 6, 11", start=0.1, end=0.7),
        steps=5,
        base=patched("TestTorchCompile", backend="scaled", keys=WAN_KEYS),
    ),
    Feature(
        "torch.compile with a backend that fails",
        "sd15",
        patched("TestTorchCompile", backend="broken", keys=SD15_KEY),
        refusal="there is no compiler for this",
    ),
    Feature(
        "patches that bring a model of their own",
        "sd15",
        patched("TestModelPatch"),
        refusal="brings a model of its own",
    ),
)
