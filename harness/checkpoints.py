"""Small checkpoints with random weights, in the formats ComfyUI's own loaders read.

Random, but made to behave like trained models where it matters for tests and for benchmarks:

- every layer takes part, the ones that training starts from zero included;
- activations keep a size of order one through the whole depth;
- the model's input reaches its output on a direct path, as in a trained denoiser, where most of
  the prediction is the noise itself, so that sampling neither explodes nor goes flat.

Everything is drawn from fixed seeds. A file is written only when it is missing or was made by
another version of this module, and appears under its name only when it is complete.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file

TEXT_WIDTH = 768  # CLIP-L, the text encoder inside the SD 1.5 checkpoint; all models here read it

# ComfyUI recognises SD 1.5 by 320 model channels and a context of 768; levels and blocks are free.
UNET_CHANNELS = 320
# Per level: (channel multiplier, transformer depth).
TWO_LEVELS, THREE_LEVELS = ((1, 0), (1, 1)), ((1, 0), (1, 1), (1, 1))

# The video transformer; its width per head must be even, for its positions.
WAN_WIDTH, WAN_FEED_FORWARD, WAN_HEADS, WAN_BLOCKS = 96, 192, 2, 12

PATCH_VALUES = 16 * 2 * 2  # a transformer's token: 16 latent channels of 2x2 pixels

# How much a residual branch adds, against a stream of size one.
BRANCH_GAIN = 0.5
# How much a transformer's own channels add to the prediction, beside the patches carried through.
HEAD_GAIN = 0.5

# The layers that a LoRA here changes, by the end of their names.
LORA_LAYERS = (
    # UNet
    *("in_layers.2", "out_layers.3", "to_q", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"),
    *("_attn.q", "_attn.v", "_attn.o", "ffn.0", "ffn.2"),  # Wan
    *("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"),  # SD3
)


class StateDict(dict[str, torch.Tensor]):
    """A state dict with one method per kind of layer, each of which draws that layer's weights.

    Weights are normal with a variance of gain² / fan-in, so that a layer keeps the size of its
    input.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, name: str, shape: Iterable[int], std: float) -> None:
        self[name] = torch.randn(*shape, generator=self.generator) * std

    def linear(
        self, name: str, outputs: int, inputs: int, *, gain: float = 1.0, bias: bool = True
    ) -> None:
        self.normal(f"{name}.weight", (outputs, inputs), gain / inputs**0.5)
        if bias:
            self[f"{name}.bias"] = torch.zeros(outputs)

    def conv(
        self,
        name: str,
        outputs: int,
        inputs: int,
        kernel: tuple[int, ...] = (3, 3),
        *,
        gain: float = 1.0,
        bias: bool = True,
    ) -> None:
        fan_in = inputs * torch.Size(kernel).numel()
        self.normal(f"{name}.weight", (outputs, inputs, *kernel), gain / fan_in**0.5)
        if bias:
            self[f"{name}.bias"] = torch.zeros(outputs)

    def norm(self, name: str, width: int, *, bias: bool = True) -> None:
        self[f"{name}.weight"] = torch.ones(width)
        if bias:
            self[f"{name}.bias"] = torch.zeros(width)


# Stable Diffusion 1.5


def write_sd15(
    path: Path, *, levels: tuple[tuple[int, int], ...] = TWO_LEVELS, channels: int = 4
) -> Path:
    """Write an SD-1.5-type checkpoint for CheckpointLoaderSimple: UNet, CLIP-L and a TAESD.

    The text encoder's shape is fixed in ComfyUI, hence 235 MiB of the file, in fp16; the UNet is
    in fp32, the type it runs in on a CPU. Nine input channels make it an inpaint model.
    """

    def make() -> dict[str, torch.Tensor]:
        return {
            **_prefixed("model.diffusion_model.", with_channels(unet(levels), channels)),
            **_prefixed("cond_stage_model.transformer.text_model.", _cast(clip(), torch.float16)),
            **_prefixed("first_stage_model.", taesd()),
        }

    return _write(path, make, levels, channels)


def with_channels(weights: StateDict, channels: int) -> StateDict:
    """The UNet with more input channels, which the first convolution sees besides the latent's."""
    first = weights["input_blocks.0.0.weight"]
    more = torch.randn(
        first.shape[0], channels - first.shape[1], *first.shape[2:], generator=weights.generator
    )
    weights["input_blocks.0.0.weight"] = torch.cat([first, 0.05 * more], dim=1)
    return weights


def write_motion(path: Path) -> Path:
    """Write AnimateDiff motion modules for the model of `write_sd15`, as in the v2 files."""
    return _write(path, motion)


def motion(
    max_frames: int = 2, widths: tuple[int, ...] = (UNET_CHANNELS,) * 2, has_middle: bool = True
) -> StateDict:
    """The modules of a UNet with one layer per level, by default those of `TWO_LEVELS`.

    Those that people use know 24 or 32 frames; only v2 for SD 1.5 has some in the middle.
    """
    weights = StateDict(11)
    places = {"mid_block.motion_modules.0": widths[-1]} if has_middle else {}
    for level, width in enumerate(widths):
        places[f"down_blocks.{level}.motion_modules.0"] = width
        up = len(widths) - 1 - level
        places |= {f"up_blocks.{up}.motion_modules.{number}": width for number in range(2)}
    for place, width in places.items():
        name = f"{place}.temporal_transformer"
        block = f"{name}.transformer_blocks.0"
        weights.norm(f"{name}.norm", width)
        weights.linear(f"{name}.proj_in", width, width)
        weights.linear(f"{name}.proj_out", width, width, gain=BRANCH_GAIN)
        for number in range(2):
            attention = f"{block}.attention_blocks.{number}"
            for part in ("to_q", "to_k", "to_v"):
                weights.linear(f"{attention}.{part}", width, width, bias=False)
            weights.linear(f"{attention}.to_out.0", width, width)
            weights.normal(f"{attention}.pos_encoder.pe", (1, max_frames, width), 0.5)
            weights.norm(f"{block}.norms.{number}", width)
        weights.linear(f"{block}.ff.net.0.proj", 8 * width, width)
        weights.linear(f"{block}.ff.net.2", width, 4 * width)
        weights.norm(f"{block}.ff_norm", width)
    return weights


def motion_lora(modules: StateDict, rank: int = 2) -> StateDict:
    """A motion LoRA for all attention of `modules`, under the names that such files have."""
    weights = StateDict(12)
    for key, weight in modules.items():
        layer, is_weight, _ = key.partition(".weight")
        if ".attention_blocks." in key and is_weight:
            attention, _, part = layer.removesuffix(".0").rpartition(".")
            name = f"{attention}.processor.{part}_lora"
            weights.normal(f"{name}.up.weight", (weight.shape[0], rank), 0.3)
            weights.normal(f"{name}.down.weight", (rank, weight.shape[1]), weight.shape[1] ** -0.5)
    return weights


def write_controlnet(path: Path) -> Path:
    """Write a ControlNet for the model of `write_sd15`, in the original format."""
    return _write(path, lambda: _prefixed("control_model.", controlnet(TWO_LEVELS)))


def controlnet(levels: tuple[tuple[int, int], ...]) -> dict[str, torch.Tensor]:
    """The UNet's encoder, a convolution for each of its outputs, and a stack for the hint."""
    encoder = ("time_embed.", "input_blocks.", "middle_block.")
    weights = StateDict(9)
    weights.update({k: v for k, v in unet(levels).items() if k.startswith(encoder)})
    widths = [3, 16, 16, 32, 32, 96, 96, 256, UNET_CHANNELS]
    for number, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        weights.conv(f"input_hint_block.{2 * number}", outputs, inputs)
    num_outputs = 1 + max(int(k.split(".")[1]) for k in weights if k.startswith("input_blocks."))
    for number in range(num_outputs):
        weights.conv(f"zero_convs.{number}.0", UNET_CHANNELS, UNET_CHANNELS, (1, 1), gain=0.3)
    weights.conv("middle_block_out.0", UNET_CHANNELS, UNET_CHANNELS, (1, 1), gain=0.3)
    return weights


def write_control_lora(path: Path) -> Path:
    """Write a Control-LoRA that changes nothing of the encoder, which ComfyUI takes from the MODEL.

    It is the rest of the ControlNet of `write_controlnet`.
    """

    def make() -> dict[str, torch.Tensor]:
        own = ("input_hint_block.", "zero_convs.", "middle_block_out.")
        whole = controlnet(TWO_LEVELS)
        return {
            "lora_controlnet": torch.zeros(1),
            **{key: weight for key, weight in whole.items() if key.startswith(own)},
        }

    return _write(path, make)


def write_t2i_adapter(path: Path) -> Path:
    """Write a T2I adapter of the SDXL kind for a picture in colours, in the original format (.pth).

    Its features have 16 pixels each, as the second level of the model of `write_sd15` has. The
    first of them is all that this small model has a place for; the weights of the others are one
    zero that is read again and again, which makes the file small.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(dict(t2i_adapter()), unfinished)
    unfinished.replace(path)
    return path


def t2i_adapter() -> StateDict:
    channels, weights = [UNET_CHANNELS * n for n in (1, 2, 4, 4)], StateDict(12)
    weights.conv("conv_in", channels[0], 3 * 16 * 16)
    for block in range(2):
        weights.conv(f"body.{block}.block1", channels[0], channels[0])
        weights.conv(f"body.{block}.block2", channels[0], channels[0], (1, 1), gain=BRANCH_GAIN)
    zero = torch.zeros(1)
    for level, (inputs, outputs) in enumerate(itertools.pairwise(channels), start=1):
        for block in (2 * level, 2 * level + 1):
            sizes = {"block1": (outputs, outputs, 3, 3), "block2": (outputs, outputs, 1, 1)}
            if inputs != outputs and block == 2 * level:
                sizes["in_conv"] = (outputs, inputs, 1, 1)
            for name, size in sizes.items():
                weights[f"body.{block}.{name}.weight"] = zero.expand(size)
                weights[f"body.{block}.{name}.bias"] = zero.expand(outputs)
    return weights


def unet(levels: tuple[tuple[int, int], ...]) -> StateDict:
    """The UNet's state dict, with one residual block per level and side (two going up).

    ``levels`` gives per level the multiple of 320 channels and the transformer depth.
    """
    channels, weights = UNET_CHANNELS, StateDict(1)
    embedding = 4 * channels

    def residual(name: str, inputs: int, outputs: int) -> int:
        weights.norm(f"{name}.in_layers.0", inputs)
        weights.conv(f"{name}.in_layers.2", outputs, inputs)
        weights.linear(f"{name}.emb_layers.1", outputs, embedding)
        weights.norm(f"{name}.out_layers.0", outputs)
        weights.conv(f"{name}.out_layers.3", outputs, outputs, gain=BRANCH_GAIN)
        if inputs != outputs:
            weights.conv(f"{name}.skip_connection", outputs, inputs, (1, 1))
        return outputs

    def transformer(name: str, width: int, depth: int) -> None:
        weights.norm(f"{name}.norm", width)
        weights.conv(f"{name}.proj_in", width, width, (1, 1))
        for index in range(depth):
            block = f"{name}.transformer_blocks.{index}"
            for attention, context in (("attn1", width), ("attn2", TEXT_WIDTH)):
                weights.linear(f"{block}.{attention}.to_q", width, width, bias=False)
                weights.linear(f"{block}.{attention}.to_k", width, context, bias=False)
                weights.linear(f"{block}.{attention}.to_v", width, context, bias=False)
                weights.linear(f"{block}.{attention}.to_out.0", width, width)
            weights.linear(f"{block}.ff.net.0.proj", 8 * width, width)
            weights.linear(f"{block}.ff.net.2", width, 4 * width)
            for norm in ("norm1", "norm2", "norm3"):
                weights.norm(f"{block}.{norm}", width)
        weights.conv(f"{name}.proj_out", width, width, (1, 1), gain=BRANCH_GAIN)

    weights.linear("time_embed.0", embedding, channels)
    weights.linear("time_embed.2", embedding, embedding)

    weights.conv("input_blocks.0.0", channels, 4)
    width = channels
    skips = [width]
    for level, (multiple, depth) in enumerate(levels):
        if level:
            weights.conv(f"input_blocks.{len(skips)}.0.op", width, width)
            skips.append(width)
        name = f"input_blocks.{len(skips)}"
        width = residual(f"{name}.0", width, multiple * channels)
        if depth:
            transformer(f"{name}.1", width, depth)
        skips.append(width)

    residual("middle_block.0", width, width)
    transformer("middle_block.1", width, 1)
    residual("middle_block.2", width, width)

    num_blocks = len(skips)
    for level, (multiple, depth) in reversed(list(enumerate(levels))):
        for last in (False, True):
            name = f"output_blocks.{num_blocks - len(skips)}"
            width = residual(f"{name}.0", width + skips.pop(), multiple * channels)
            if depth:
                transformer(f"{name}.1", width, depth)
            if level and last:
                weights.conv(f"{name}.{2 if depth else 1}.conv", width, width)

    weights.norm("out.0", channels)
    weights.conv("out.2", 4, channels, gain=0.5)
    _carry_input(weights, last_block=f"output_blocks.{num_blocks - 1}.0")
    return weights


def _carry_input(weights: StateDict, last_block: str) -> None:
    """Make the UNet predict its own input plus what the blocks add.

    Eight channels carry ±x from the first convolution over the outermost skip to the output, where
    silu(x) - silu(-x) = x undoes the activation.
    """
    first = weights["input_blocks.0.0.weight"]
    skip = weights[f"{last_block}.skip_connection.weight"]
    last = weights["out.2.weight"]
    first[:8] = 0
    skip[:8] = 0
    weights[f"{last_block}.out_layers.3.weight"][:8] = 0
    last[:, :8] = 0
    for channel in range(4):
        for carrier, sign in ((2 * channel, 1), (2 * channel + 1, -1)):
            first[carrier, channel, 1, 1] = sign
            skip[carrier, UNET_CHANNELS + carrier] = 1
            last[channel, carrier, 1, 1] = sign


def clip() -> StateDict:
    """CLIP-L's text model, whose shape ComfyUI fixes."""
    width, weights = TEXT_WIDTH, StateDict(2)
    weights.normal("embeddings.token_embedding.weight", (49408, width), 1.0)
    weights.normal("embeddings.position_embedding.weight", (77, width), 0.3)
    for index in range(12):
        layer = f"encoder.layers.{index}"
        weights.norm(f"{layer}.layer_norm1", width)
        weights.norm(f"{layer}.layer_norm2", width)
        for projection in ("q_proj", "k_proj", "v_proj"):
            weights.linear(f"{layer}.self_attn.{projection}", width, width)
        weights.linear(f"{layer}.self_attn.out_proj", width, width, gain=BRANCH_GAIN)
        weights.linear(f"{layer}.mlp.fc1", 4 * width, width)
        weights.linear(f"{layer}.mlp.fc2", width, 4 * width, gain=BRANCH_GAIN)
    weights.norm("final_layer_norm", width)
    return weights


def taesd() -> StateDict:
    """TAESD, Stable Diffusion's tiny autoencoder."""
    width, weights = 64, StateDict(3)

    weights.conv("taesd_encoder.0", width, 3)
    for index in (1, 3, 4, 5, 7, 8, 9, 11, 12, 13):
        for layer in (0, 2, 4):
            weights.conv(f"taesd_encoder.{index}.conv.{layer}", width, width)
    for index in (2, 6, 10):
        weights.conv(f"taesd_encoder.{index}", width, width, bias=False)
    weights.conv("taesd_encoder.14", 4, width)

    weights.conv("taesd_decoder.1", width, 4)
    for index in (3, 4, 5, 8, 9, 10, 13, 14, 15, 18):
        for layer in (0, 2, 4):
            weights.conv(f"taesd_decoder.{index}.conv.{layer}", width, width)
    for index in (7, 12, 17):
        weights.conv(f"taesd_decoder.{index}", width, width, bias=False)
    weights.conv("taesd_decoder.19", 3, width)

    weights["vae_scale"] = torch.tensor(0.18215)
    weights["vae_shift"] = torch.tensor(0.0)
    return weights


# Wan 2.1


def write_wan(path: Path, **fields: Any) -> Path:
    """Write a Wan 2.1 text-to-video diffusion model for UNETLoader, in fp32.

    Its text is CLIP-L's: the metadata's ``config`` tells ComfyUI the fields that it would
    otherwise take from the full-size model. ``fields`` are more of them.
    """
    config = {"transformer": {"text_dim": TEXT_WIDTH, "num_heads": WAN_HEADS, **fields}}
    return _write(path, wan, config=json.dumps(config))


def wan() -> StateDict:
    """The video transformer's state dict."""
    width, weights = WAN_WIDTH, StateDict(4)
    weights.conv("patch_embedding", width, 16, (1, 2, 2))
    weights.linear("text_embedding.0", width, TEXT_WIDTH)
    weights.linear("text_embedding.2", width, width)
    weights.linear("time_embedding.0", width, 256)
    weights.linear("time_embedding.2", width, width)
    weights.linear("time_projection.1", 6 * width, width, gain=BRANCH_GAIN)
    for index in range(WAN_BLOCKS):
        block = f"blocks.{index}"
        weights.normal(f"{block}.modulation", (1, 6, width), BRANCH_GAIN)
        for attention in ("self_attn", "cross_attn"):
            for projection in ("q", "k", "v"):
                weights.linear(f"{block}.{attention}.{projection}", width, width)
            weights.linear(f"{block}.{attention}.o", width, width, gain=BRANCH_GAIN)
            weights.norm(f"{block}.{attention}.norm_q", width, bias=False)
            weights.norm(f"{block}.{attention}.norm_k", width, bias=False)
        weights.norm(f"{block}.norm3", width)
        weights.linear(f"{block}.ffn.0", WAN_FEED_FORWARD, width)
        weights.linear(f"{block}.ffn.2", width, WAN_FEED_FORWARD, gain=BRANCH_GAIN)
    weights.normal("head.modulation", (1, 2, width), 0.1)
    weights.linear("head.head", PATCH_VALUES, width)
    _carry_patches(weights, "patch_embedding", "head.head")
    return weights


# Stable Diffusion 3


def write_sd3(path: Path, *, depth: int = 8) -> Path:
    """Write an SD3-type diffusion model for UNETLoader, in fp16.

    The architecture ties the width to the number of blocks (64 * ``depth``): 8 blocks are 75
    million parameters, 4 blocks 9 million. Text and pooled text are CLIP-L's.
    """
    return _write(path, lambda: _cast(sd3(depth), torch.float16), depth)


def write_sd3_controlnet(path: Path, *, depth: int = 8) -> Path:
    """Write a ControlNet for the model of `write_sd3`, in the format of diffusers.

    Two blocks, and a hint of four channels, which SD 1.5's autoencoder makes.
    """
    return _write(path, lambda: sd3_controlnet(depth), depth)


# ComfyUI's names to those of diffusers, where they are not the same.
DIFFUSERS_SD3 = (
    ("joint_blocks.", "transformer_blocks."),
    ("context_block.adaLN_modulation.1.", "norm1_context.linear."),
    ("x_block.adaLN_modulation.1.", "norm1.linear."),
    ("context_block.attn.proj.", "attn.to_add_out."),
    ("x_block.attn.proj.", "attn.to_out.0."),
    ("context_block.mlp.fc1.", "ff_context.net.0.proj."),
    ("context_block.mlp.fc2.", "ff_context.net.2."),
    ("x_block.mlp.fc1.", "ff.net.0.proj."),
    ("x_block.mlp.fc2.", "ff.net.2."),
    ("x_embedder.", "pos_embed."),
    ("t_embedder.mlp.0.", "time_text_embed.timestep_embedder.linear_1."),
    ("t_embedder.mlp.2.", "time_text_embed.timestep_embedder.linear_2."),
    ("y_embedder.mlp.0.", "time_text_embed.text_embedder.linear_1."),
    ("y_embedder.mlp.2.", "time_text_embed.text_embedder.linear_2."),
)
DIFFUSERS_QKV = {
    "context_block.attn.qkv.": ("attn.add_q_proj.", "attn.add_k_proj.", "attn.add_v_proj."),
    "x_block.attn.qkv.": ("attn.to_q.", "attn.to_k.", "attn.to_v."),
}


def sd3_controlnet(depth: int, num_blocks: int = 2) -> StateDict:
    width, weights = 64 * depth, StateDict(13)
    blocks = tuple(f"joint_blocks.{index}." for index in range(num_blocks))
    for key, weight in sd3(depth).items():
        if key.startswith("final_layer.") or key.startswith("joint_blocks.") > key.startswith(
            blocks
        ):
            continue
        for ours, theirs in DIFFUSERS_SD3:
            key = key.replace(ours, theirs)
        qkv = next((name for name in DIFFUSERS_QKV if name in key), None)
        if qkv:
            for part, name in zip(weight.chunk(3), DIFFUSERS_QKV[qkv], strict=True):
                weights[key.replace(qkv, name)] = part
        else:
            weights["pos_embed.pos_embed" if key == "pos_embed" else key] = weight
    weights.conv("pos_embed_input.proj", width, 4, (2, 2))
    for index in range(num_blocks):
        weights.linear(f"controlnet_blocks.{index}", width, width, gain=0.3)
    return weights


def sd3(depth: int) -> StateDict:
    """The multimodal transformer's state dict."""
    width, weights = 64 * depth, StateDict(5)
    weights.conv("x_embedder.proj", width, 16, (2, 2))
    weights.normal("pos_embed", (1, 32 * 32, width), 0.3)
    weights.linear("context_embedder", width, TEXT_WIDTH)
    for embedder, inputs in (("t_embedder", 256), ("y_embedder", TEXT_WIDTH)):
        weights.linear(f"{embedder}.mlp.0", width, inputs)
        weights.linear(f"{embedder}.mlp.2", width, width)
    for index in range(depth):
        for stream in ("context_block", "x_block"):
            block = f"joint_blocks.{index}.{stream}"
            weights.linear(f"{block}.attn.qkv", 3 * width, width)
            # The last block's text is not used any more: it has a query, key and value only.
            only_attended = stream == "context_block" and index == depth - 1
            modulations = 2 if only_attended else 6
            weights.linear(f"{block}.adaLN_modulation.1", modulations * width, width)
            if not only_attended:
                weights.linear(f"{block}.attn.proj", width, width, gain=BRANCH_GAIN)
                weights.linear(f"{block}.mlp.fc1", 4 * width, width)
                weights.linear(f"{block}.mlp.fc2", width, 4 * width, gain=BRANCH_GAIN)
    weights.linear("final_layer.adaLN_modulation.1", 2 * width, width, gain=0.1)
    weights.linear("final_layer.linear", PATCH_VALUES, width)
    _carry_patches(weights, "x_embedder.proj", "final_layer.linear")
    return weights


# Flux


def write_flux(path: Path) -> Path:
    """Write a Flux.1-type diffusion model for UNETLoader, in fp32: one head, two and three blocks.

    Text and pooled text are CLIP-L's.
    """
    return _write(path, flux)


def flux() -> StateDict:
    """The state dict of a transformer with double and single blocks."""
    width, weights = 128, StateDict(11)  # per head, as ComfyUI's positions have it

    def attention_norms(name: str) -> None:
        for norm in ("query_norm", "key_norm"):
            weights[f"{name}.{norm}.scale"] = torch.ones(width)

    weights.linear("img_in", width, PATCH_VALUES)
    weights.linear("txt_in", width, TEXT_WIDTH)
    for embedder, inputs in (("time_in", 256), ("vector_in", TEXT_WIDTH), ("guidance_in", 256)):
        weights.linear(f"{embedder}.in_layer", width, inputs)
        weights.linear(f"{embedder}.out_layer", width, width)
    for index in range(2):
        for stream in ("img", "txt"):
            name = f"double_blocks.{index}.{stream}"
            weights.linear(f"{name}_mod.lin", 6 * width, width)
            weights.linear(f"{name}_attn.qkv", 3 * width, width)
            attention_norms(f"{name}_attn.norm")
            weights.linear(f"{name}_attn.proj", width, width, gain=BRANCH_GAIN)
            weights.linear(f"{name}_mlp.0", 4 * width, width)
            weights.linear(f"{name}_mlp.2", width, 4 * width, gain=BRANCH_GAIN)
    for index in range(3):
        name = f"single_blocks.{index}"
        weights.linear(f"{name}.modulation.lin", 3 * width, width)
        weights.linear(f"{name}.linear1", 7 * width, width)
        weights.linear(f"{name}.linear2", width, 5 * width, gain=BRANCH_GAIN)
        attention_norms(f"{name}.norm")
    weights.linear("final_layer.adaLN_modulation.1", 2 * width, width, gain=0.1)
    weights.linear("final_layer.linear", PATCH_VALUES, width)
    return weights


def write_flux_controlnet(path: Path) -> Path:
    """Write a ControlNet for the model of `write_flux`, in the format of XLabs."""
    return _write(path, flux_controlnet)


def flux_controlnet() -> StateDict:
    """The double blocks, a layer for the output of each, and a stack for the hint."""
    weights = StateDict(14)
    left_out = ("single_blocks.", "final_layer.")
    weights.update({key: weight for key, weight in flux().items() if not key.startswith(left_out)})
    width = weights["img_in.bias"].shape[0]
    for number in range(8):
        weights.conv(f"input_hint_block.{2 * number}", 16, 16 if number else 3)
    weights.linear("pos_embed_input", width, PATCH_VALUES)
    for index in range(2):
        weights.linear(f"controlnet_blocks.{index}", width, width, gain=0.3)
    return weights


def _carry_patches(weights: StateDict, embedding: str, head: str) -> None:
    """Let the first channels of a transformer carry the patches and its head read them again.

    The embedding sees a patch as (channel, row, column), the head writes (row, column, channel).
    """
    first, last = weights[f"{embedding}.weight"], weights[f"{head}.weight"]
    values = torch.eye(PATCH_VALUES)
    first[:PATCH_VALUES] = values.view(PATCH_VALUES, *first.shape[1:])
    last *= HEAD_GAIN
    last[:, :PATCH_VALUES] = values.view(16, 4, PATCH_VALUES).transpose(0, 1).flatten(0, 1)


# LoRA


def write_lora(path: Path, *, model: Literal["sd15", "sd3", "wan"]) -> Path:
    """Write a LoRA in the kohya format for the model that `write_sd15` and so on write.

    It touches attention, feed-forward and, in the UNet, convolutions, in every block, and changes
    each weight by about a quarter of its size.
    """
    bases = {"sd15": lambda: unet(TWO_LEVELS), "sd3": lambda: sd3(8), "wan": wan}
    return _write(path, lambda: lora(bases[model]()), model)


def lora(
    base: dict[str, torch.Tensor], rank: int = 4, layers: tuple[str, ...] = LORA_LAYERS
) -> StateDict:
    """Low-rank changes to the weights of ``base`` whose layers' names end so."""
    weights = StateDict(7)
    for key, weight in base.items():
        layer, _, kind = key.rpartition(".")
        if kind != "weight" or not layer.endswith(layers):
            continue
        outputs, inputs, *kernel = weight.shape
        name = "lora_unet_" + layer.replace(".", "_")
        fan_in = weight[0].numel()
        weights.normal(f"{name}.lora_down.weight", (rank, inputs, *kernel), fan_in**-0.5)
        weights.normal(
            f"{name}.lora_up.weight", (outputs, rank, *(1 for _ in kernel)), 0.25 / rank**0.5
        )
        weights[f"{name}.alpha"] = torch.tensor(float(rank))
    return weights


LORA_KINDS = ("loha", "lokr", "dora", "diff")


def write_lora_kind(path: Path, kind: str) -> Path:
    """Write a change of another kind than `write_lora`'s to the model that `write_sd15` writes."""
    return _write(path, lambda: lora_kind(unet(TWO_LEVELS), kind), kind)


def lora_kind(base: dict[str, torch.Tensor], kind: str, rank: int = 2) -> StateDict:
    """Changes to the linear layers of ``base``, of a kind in ``LORA_KINDS``."""
    weights = StateDict(8)
    for key, weight in base.items():
        layer, _, suffix = key.rpartition(".")
        if suffix != "weight" or not layer.endswith(LORA_LAYERS) or weight.ndim != 2:
            continue
        outputs, inputs = weight.shape
        name = "lora_unet_" + layer.replace(".", "_")
        if kind == "loha":
            for half in ("w1", "w2"):
                weights.normal(f"{name}.hada_{half}_a", (outputs, rank), 0.1)
                weights.normal(f"{name}.hada_{half}_b", (rank, inputs), 0.1)
        elif kind == "lokr":
            weights.normal(f"{name}.lokr_w1", (2, 2), 0.3)
            weights.normal(f"{name}.lokr_w2", (outputs // 2, inputs // 2), 0.3 / inputs**0.5)
        elif kind == "diff":
            weights.normal(f"{name}.diff", (outputs, inputs), 0.2 / inputs**0.5)
        else:
            weights.normal(f"{name}.lora_down.weight", (rank, inputs), inputs**-0.5)
            weights.normal(f"{name}.lora_up.weight", (outputs, rank), 0.25)
            weights[f"{name}.dora_scale"] = weight.norm(dim=1, keepdim=True)
        if kind != "diff":
            weights[f"{name}.alpha"] = torch.tensor(float(rank))
    return weights


# Files


def _prefixed(prefix: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: weight for name, weight in weights.items()}


def _cast(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: weight.to(dtype) for name, weight in weights.items()}


def _write(
    path: Path, make: Callable[[], dict[str, torch.Tensor]], *options: object, **metadata: str
) -> Path:
    """Write ``make()`` to ``path`` unless this module, with these options, already has.

    The file is named only when it is complete, so that an interrupted run leaves none behind that
    could be taken for whole.
    """
    source = Path(__file__).read_bytes() + repr(options).encode()
    recipe = hashlib.sha256(source).hexdigest()
    if _recipe_of(path) == recipe:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(
            {name: weight.contiguous() for name, weight in make().items()},
            unfinished,
            metadata={**metadata, "format": "pt", "recipe": recipe},
        )
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _recipe_of(path: Path) -> str | None:
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("recipe")
