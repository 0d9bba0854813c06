"""Tiny random models of every architecture that has a layout, in ComfyUI's own classes.

Each entry of `ARCHITECTURES` gives the class, a small configuration, and the inputs of one
evaluation, with odd sizes where the model pads. Needs ComfyUI on the search path; see
architecture_parity.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.ops
import torch

Inputs = dict[str, Any]

# Buffers that a class leaves to the file: positions of SD3 and Stable Audio, SeedVR2's prompts.
IN_THE_FILE = {"pos_embed", "transformer.rotary_pos_emb.inv_freq", "positive_conditioning"}
IN_THE_FILE |= {"negative_conditioning", "rope.inv_freq"}


class Draw:
    """Draws the same random tensors every time."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def tokens(self, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=self.generator)


def fill(model: torch.nn.Module) -> None:
    """Give a model random weights, the same every time."""
    draw = Draw(3)
    buffers = {key for key, _ in model.named_buffers()} - IN_THE_FILE
    for key, value in (*model.named_parameters(), *model.named_buffers()):
        if key in buffers:
            continue  # tables that the class computes
        value.requires_grad_(False)
        if value.numel() > 2**24:
            value.zero_()  # a table of words that no evaluation reads
        elif value.ndim < 2:
            value.copy_(0.1 * draw(*value.shape) + (1.0 if key.endswith("weight") else 0.0))
        else:
            value.copy_(draw(*value.shape) / value[0].numel() ** 0.5)


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Attributes:
        path: ``module:class`` below comfy.ldm.
        config: arguments of the class.
        inputs: makes the arguments of one evaluation, by name; `x` and the timestep are positional.
        label: what people call the models.
    """

    label: str
    path: str
    config: dict[str, Any]
    inputs: Callable[[Draw], Inputs]
    timestep: float = 0.7
    is_newer: bool = False  # than the ComfyUI of the tests

    @property
    def class_name(self) -> str:
        return self.path.partition(":")[2]

    def is_known(self) -> bool:
        """Whether this ComfyUI has the class; an older one has not all of them."""
        try:
            module = importlib.import_module(f"comfy.ldm.{self.path.partition(':')[0]}")
        except ModuleNotFoundError:
            return False
        return hasattr(module, self.class_name)

    def build(self) -> torch.nn.Module:
        """The model, with the same random weights every time."""
        module = importlib.import_module(f"comfy.ldm.{self.path.partition(':')[0]}")
        model = getattr(module, self.class_name)(
            **self.config, dtype=torch.float32, device="cpu", operations=comfy.ops.manual_cast
        )
        fill(model)
        return model.eval()

    def evaluation(self, number: int) -> tuple[tuple[Any, ...], Inputs]:
        """The inputs of evaluation `number`: as in a sampler, x and the timestep change."""
        inputs = self.inputs(Draw(5))
        x = inputs.pop("x")
        noise = Draw(7 + number)
        timestep = torch.full((_batch(x),), self.timestep * (1.0 - 0.2 * number))
        if isinstance(x, list):
            x = [part + 0.1 * number * noise(*part.shape) for part in x]
        else:
            x = x + 0.1 * number * noise(*x.shape)
        inputs.setdefault("transformer_options", {})
        return (x, timestep), inputs


class Animated(Architecture):
    """A UNet with motion modules in it; what is a batch for others are its frames."""

    def build(self) -> torch.nn.Module:
        from asyncdiff_core.comfyui.model import motion

        unet, draw = super().build(), Draw(4)
        state = {}
        for place, name, _ in motion._places(unet):
            state[place] = _motion_state(motion._width(unet.get_submodule(name)), draw)
        weights = motion.extend(unet, state, torch.float32, comfy.ops.manual_cast)
        unet.load_state_dict(weights, strict=False)
        return unet


def _motion_state(width: int, draw: Draw) -> dict[str, torch.Tensor]:
    block = "transformer_blocks.0."
    shapes: dict[str, tuple[int, ...]] = {
        **{f"{name}.weight": (width, width) for name in ("proj_in", "proj_out")},
        f"{block}attention_blocks.0.pos_encoder.pe": (1, 4, width),
        f"{block}ff.net.0.proj.weight": (8 * width, width),
        f"{block}ff.net.0.proj.bias": (8 * width,),
        f"{block}ff.net.2.weight": (width, 4 * width),
    }
    for name in ("to_q", "to_k", "to_v", "to_out.0"):
        shapes[f"{block}attention_blocks.0.{name}.weight"] = (width, width)
    norms = ("norm", f"{block}norms.0", f"{block}ff_norm")
    biases = ("proj_in", "proj_out", f"{block}attention_blocks.0.to_out.0", f"{block}ff.net.2")
    shapes |= {f"{name}.weight": (width,) for name in norms}
    shapes |= {f"{name}.bias": (width,) for name in (*norms, *biases)}
    return {name: draw(*shape) / shape[-1] ** 0.5 for name, shape in shapes.items()}


def _batch(x: Any) -> int:
    return (x[0] if isinstance(x, list) else x).shape[0]


UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "context_dim": 16,
    "num_heads": 2,
    "legacy": False,
}
FLUX = {
    "in_channels": 4,
    "out_channels": 4,
    "vec_in_dim": 8,
    "context_in_dim": 16,
    "hidden_size": 32,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 3,
    "depth_single_blocks": 3,
    "axes_dim": [4, 6, 6],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
CHROMA = {
    **{
        key: FLUX[key]
        for key in ("out_channels", "context_in_dim", "hidden_size", "mlp_ratio", "num_heads")
    },
    **{
        key: FLUX[key]
        for key in ("depth", "depth_single_blocks", "axes_dim", "theta", "patch_size", "qkv_bias")
    },
    "in_channels": 16,
    "out_channels": 16,
    "in_dim": 64,
    "out_dim": 32,
    "hidden_dim": 32,
    "n_layers": 2,
    "txt_ids_dims": [],
    "vec_in_dim": 8,
}
WAN = {
    "dim": 48,
    "ffn_dim": 64,
    "freq_dim": 32,
    "text_dim": 16,
    "in_dim": 4,
    "out_dim": 4,
    "num_heads": 2,
    "num_layers": 6,
}
LUMINA = {
    "patch_size": 2,
    "in_channels": 4,
    "dim": 48,
    "n_layers": 4,
    "n_refiner_layers": 2,
    "n_heads": 2,
    "n_kv_heads": 2,
    "multiple_of": 16,
    "ffn_dim_multiplier": 1.0,
    "cap_feat_dim": 16,
    "qk_norm": True,
    "axes_dims": [8, 8, 8],
    "axes_lens": [64, 64, 64],
}
HUNYUAN = {
    **{
        key: FLUX[key] for key in ("vec_in_dim", "context_in_dim", "mlp_ratio", "theta", "qkv_bias")
    },
    "in_channels": 4,
    "out_channels": 4,
    "hidden_size": 48,
    "num_heads": 2,
    "depth": 3,
    "depth_single_blocks": 3,
    "axes_dim": [8, 8, 8],
    "patch_size": [1, 2, 2],
    "guidance_embed": True,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
COSMOS2 = {
    "max_img_h": 32,
    "max_img_w": 32,
    "max_frames": 16,
    "in_channels": 4,
    "out_channels": 4,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 64,
    "num_blocks": 5,
    "num_heads": 2,
    "crossattn_emb_channels": 16,
    "pos_emb_cls": "rope3d",
    "use_adaln_lora": True,
    "adaln_lora_dim": 8,
}
LTX = {
    "in_channels": 8,
    "cross_attention_dim": 48,
    "attention_head_dim": 24,
    "num_attention_heads": 2,
    "caption_channels": 16,
    "num_layers": 5,
}
LTX_AV = {
    **LTX,
    "audio_in_channels": 128,  # eight channels of sixteen frequencies
    "audio_cross_attention_dim": 32,
    "audio_attention_head_dim": 16,
    "audio_num_attention_heads": 2,
    "connector_attention_head_dim": 8,
    "connector_num_attention_heads": 2,
    "connector_num_layers": 1,
}
MINIMAX = {
    **{"hidden_size": 64, "num_layers": 5, "token_refiner_num_layers": 1, "ffn_hidden_size": 96},
    **{"num_attention_heads": 2, "text_dim": 16, "time_embed_hidden_size": 64},
    "time_embed_dim": 32,
}
HIDREAM_O1 = {
    "text_config_overrides": {
        **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5},
        **{"num_attention_heads": 4, "num_key_value_heads": 2},
    },
    "vision_config_overrides": {
        **{"hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "depth": 2},
        "deepstack_visual_indexes": [0, 1],
    },
}
PIXEL_DIT = {
    "num_groups": 2,
    "hidden_size": 32,
    "pixel_hidden_size": 4,
    "pixel_attn_hidden_size": 16,
    "pixel_num_groups": 2,
    "patch_depth": 4,
    "pixel_depth": 2,
    "patch_size": 4,
    "txt_embed_dim": 16,
    "txt_max_length": 7,
}


def picture(draw: Draw) -> torch.Tensor:
    return draw(2, 4, 10, 14)


def video(draw: Draw, channels: int = 4) -> torch.Tensor:
    return draw(1, channels, 3, 6, 10)


def text(draw: Draw, batch: int = 2, width: int = 16) -> torch.Tensor:
    return draw(batch, 7, width)


def unet(draw: Draw, **more: Any) -> Inputs:
    return {"x": draw(2, 4, 8, 12), "context": text(draw), **more}


def flux(draw: Draw, channels: int = 4, **more: Any) -> Inputs:
    x = draw(2, channels, 9, 14)
    return {
        "x": x,
        "context": text(draw),
        "y": draw(2, 8),
        "guidance": torch.full((2,), 3.5),
        **more,
    }


def wan(draw: Draw, **more: Any) -> Inputs:
    return {"x": video(draw), "context": text(draw, 1), **more}


def lumina(draw: Draw, **more: Any) -> Inputs:
    return {"x": draw(2, 4, 9, 14), "context": text(draw), "num_tokens": 7, **more}


def minimax(draw: Draw) -> Inputs:
    """A first frame beside the video, as *MiniMax H3 Image to Video* gives it."""
    frame = draw(1, 24, 1, 4, 6)
    payload = {
        "text_token_tags": torch.tensor([1, 1, 0, 0, 1, 1, 1]),
        "keyframes": [{"resolved_frame_index": 0, "latent": frame}],
        "frame_count": 5,
        "cond_video_latents": [frame],
        "seed": 3,
    }
    return {
        "x": [draw(1, 24, 2, 4, 6), draw(1, 32, 2, 8)],
        "context": text(draw, 1, MINIMAX["hidden_size"]),
        "minimax_payload": payload,
    }


def hidream_o1(draw: Draw, *, picture: bool = True) -> Inputs:
    """As the model's own conditioning code makes them, of one prompt for two latents."""
    from comfy.ldm.hidream_o1.conditioning import build_extra_conds

    x = draw(2, 3, 64, 96)
    pictures = [draw.tokens(256, 1, 40, 56, 3) / 255] if picture else None
    tokens = torch.tensor([[151644, 872, 198, 64, 65, 66, 151645]])
    conds = build_extra_conds(tokens, x, ref_images=pictures)
    for name, value in conds.items():
        if isinstance(value, torch.Tensor):
            conds[name] = value.expand(2, *value.shape[1:]).contiguous()
    return {"x": x, **conds}


def hunyuan_video(draw: Draw, **more: Any) -> Inputs:
    return {
        "x": video(draw),
        "context": text(draw, 1),
        "y": draw(1, 8),
        "guidance": torch.full((1,), 6.0),
        **more,
    }


ARCHITECTURES = (
    Architecture(
        "SD 1.x, SD 2.x",
        "modules.diffusionmodules.openaimodel:UNetModel",
        UNET,
        unet,
        timestep=700.0,
    ),
    Animated(
        "SD 1.5 with AnimateDiff motion modules",
        "modules.diffusionmodules.openaimodel:UNetModel",
        UNET,
        unet,
        timestep=700.0,
    ),
    Architecture(
        "SDXL, SDXL refiner, SD 1.5 and SDXL inpaint, SD x4 upscaler",
        "modules.diffusionmodules.openaimodel:UNetModel",
        {**UNET, "in_channels": 9, "num_classes": "sequential", "adm_in_channels": 8},
        lambda draw: {"x": draw(2, 9, 8, 12), "context": text(draw), "y": draw(2, 8)},
        timestep=700.0,
    ),
    Architecture(
        "SVD, SV3D",
        "modules.diffusionmodules.openaimodel:UNetModel",
        {
            **{**UNET, "in_channels": 8, "num_classes": "sequential", "adm_in_channels": 8},
            "use_temporal_resblock": True,
            "use_temporal_attention": True,
            "extra_ff_mix_layer": True,
            "use_spatial_context": True,
            "merge_strategy": "learned_with_images",
            "video_kernel_size": [3, 1, 1],
        },
        lambda draw: {
            "x": draw(6, 8, 8, 12),
            "context": draw(6, 1, 16),
            "y": draw(6, 8),
            "num_video_frames": 3,
            "image_only_indicator": torch.zeros(2, 3),
        },
        timestep=1.2,
    ),
    Architecture(
        "SD3, SD3.5",
        "modules.diffusionmodules.mmdit:OpenAISignatureMMDITWrapper",
        {
            "input_size": None,
            "patch_size": 2,
            "in_channels": 4,
            "depth": 4,
            "adm_in_channels": 8,
            "context_size": 16,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 16, "out_features": 256},
            },
            "pos_embed_max_size": 16,
            "num_patches": 256,
            "qk_norm": "rms",
            "x_block_self_attn_layers": [0, 1],
        },
        lambda draw: {"x": draw(2, 4, 9, 14), "context": text(draw), "y": draw(2, 8)},
        timestep=700.0,
    ),
    Architecture("Flux.1, LongCat Image", "flux.model:Flux", FLUX, flux),
    Architecture(
        "Flux.2",
        "flux.model:Flux",
        {
            **{
                **FLUX,
                "axes_dim": [4, 4, 4, 4],
                "txt_ids_dims": [3],
                "qkv_bias": False,
                "vec_in_dim": None,
            },
            "global_modulation": True,
            "mlp_silu_act": True,
            "ops_bias": False,
        },
        lambda draw: {**flux(draw), "ref_latents": [draw(2, 4, 6, 8)], "y": None},
    ),
    Architecture("Chroma", "chroma.model:Chroma", CHROMA, lambda draw: flux(draw, y=None)),
    Architecture(
        "Chroma Radiance",
        "chroma_radiance.model:ChromaRadiance",
        {
            **{**CHROMA, "in_channels": 3, "patch_size": 4},
            "nerf_hidden_size": 8,
            "nerf_mlp_ratio": 2,
            "nerf_depth": 2,
            "nerf_max_freqs": 4,
            "nerf_tile_size": 0,
            "nerf_final_head_type": "conv",
            "nerf_embedder_dtype": torch.float32,
            "use_x0": False,
            "use_sequential_txt_ids": False,
        },
        lambda draw: {**flux(draw, y=None), "x": draw(2, 3, 12, 16)},
    ),
    Architecture(
        "Qwen-Image, Qwen-Image-Edit",
        "qwen_image.model:QwenImageTransformer2DModel",
        {
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 5,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "axes_dims_rope": (4, 6, 6),
        },
        lambda draw: {
            "x": draw(2, 4, 1, 9, 14),
            "context": text(draw),
            "ref_latents": [draw(2, 4, 1, 8, 8)],
        },
    ),
    Architecture(
        "Mage-Flow",
        "mage_flow.model:MageFlowTransformer2DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 5,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "axes_dims_rope": (4, 6, 6),
        },
        lambda draw: {"x": draw(2, 4, 5, 7), "context": text(draw)},
    ),
    Architecture("Lumina 2", "lumina.model:NextDiT", LUMINA, lumina),
    Architecture(
        "Z-Image",
        "lumina.model:NextDiT",
        {
            **{**LUMINA, "dim": 256, "n_heads": 4, "n_kv_heads": 4, "axes_dims": [16, 24, 24]},
            "z_image_modulation": True,
            "time_scale": 1000.0,
            "pad_tokens_multiple": 8,
        },
        lumina,
    ),
    Architecture(
        "Z-Image in pixel space",
        "lumina.model:NextDiTPixelSpace",
        {**LUMINA, "decoder_hidden_size": 16, "decoder_num_res_blocks": 2},
        lumina,
    ),
    Architecture(
        "HiDream I1",
        "hidream.model:HiDreamImageTransformer2DModel",
        {
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "num_single_layers": 3,
            "attention_head_dim": 24,
            "num_attention_heads": 2,
            "caption_channels": [16, 16],
            "text_emb_dim": 8,
            "axes_dims_rope": (8, 8, 8),
            "max_resolution": (32, 32),
            "llama_layers": [0, 1, 2, 3, 4, 5],
        },
        lambda draw: {
            "x": draw(2, 4, 10, 14),
            "y": draw(2, 8),
            "context": text(draw),
            "encoder_hidden_states_llama3": draw(2, 6, 5, 16),
        },
        timestep=700.0,
    ),
    Architecture(
        "AuraFlow",
        "aura.mmdit:MMDiT",
        {
            "dim": 32,
            "n_layers": 6,
            "n_double_layers": 3,
            "n_heads": 2,
            "global_conddim": 32,
            "cond_seq_dim": 16,
            "max_seq": 64,
        },
        lambda draw: {"x": draw(2, 4, 10, 14), "context": text(draw)},
    ),
    Architecture(
        "PixArt alpha and sigma",
        "pixart.pixartms:PixArtMS",
        {
            "hidden_size": 32,
            "depth": 5,
            "num_heads": 2,
            "caption_channels": 16,
            "micro_condition": False,
        },
        lambda draw: {"x": draw(2, 4, 60, 70), "context": text(draw)},
        timestep=700.0,
    ),
    Architecture(
        "HunyuanDiT",
        "hydit.models:HunYuanDiT",
        {
            "hidden_size": 48,
            "depth": 8,
            "num_heads": 2,
            "text_states_dim": 16,
            "text_states_dim_t5": 16,
            "text_len": 7,
            "text_len_t5": 9,
            "learn_sigma": True,
        },
        lambda draw: {
            "x": picture(draw),
            "context": text(draw),
            "text_embedding_mask": torch.ones(2, 7),
            "encoder_hidden_states_t5": draw(2, 9, 16),
            "text_embedding_mask_t5": torch.ones(2, 9),
        },
        timestep=700.0,
    ),
    Architecture(
        "OmniGen2",
        "omnigen.omnigen2:OmniGen2Transformer2DModel",
        {
            "in_channels": 4,
            "hidden_size": 48,
            "num_layers": 4,
            "num_refiner_layers": 2,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 16,
            "axes_dim_rope": (8, 8, 8),
            "axes_lens": (64, 64, 64),
            "text_feat_dim": 16,
        },
        lambda draw: {**lumina(draw), "ref_latents": [draw(2, 4, 8, 8)]},
    ),
    Architecture(
        "Boogu",
        "boogu.model:BooguTransformer2DModel",
        {
            "in_channels": 4,
            "hidden_size": 48,
            "num_layers": 6,
            "num_double_stream_layers": 3,
            "num_refiner_layers": 2,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 16,
            "axes_dim_rope": (8, 8, 8),
            "axes_lens": (64, 64, 64),
            "instruction_feat_dim": 16,
        },
        lumina,
    ),
    Architecture(
        "Cosmos 1",
        "cosmos.model:GeneralDIT",
        {
            "max_img_h": 32,
            "max_img_w": 32,
            "max_frames": 16,
            "in_channels": 4,
            "out_channels": 4,
            "patch_spatial": 2,
            "patch_temporal": 1,
            "model_channels": 64,
            "num_blocks": 5,
            "num_heads": 2,
            "crossattn_emb_channels": 16,
            "block_x_format": "THWBD",
            "pos_emb_cls": "rope3d",
            "affline_emb_norm": True,
            "use_adaln_lora": True,
            "adaln_lora_dim": 8,
            "extra_per_block_abs_pos_emb": True,
            "extra_per_block_abs_pos_emb_type": "learnable",
        },
        lambda draw: {
            "x": video(draw),
            "context": text(draw, 1),
            "fps": torch.tensor([24.0]),
            "image_size": torch.tensor([[48.0, 80.0, 48.0, 80.0]]),
            "padding_mask": torch.zeros(1, 1, 6, 10),
        },
    ),
    Architecture(
        "Cosmos predict 2",
        "cosmos.predict2:MiniTrainDIT",
        COSMOS2,
        lambda draw: wan(draw, fps=None),
    ),
    Architecture("Anima", "anima.model:Anima", COSMOS2, lambda draw: wan(draw, fps=None)),
    Architecture("Wan 2.1, 2.2: text to video", "wan.model:WanModel", WAN, wan),
    Architecture(
        "Wan 2.1, 2.2: image to video",
        "wan.model:WanModel",
        {**WAN, "model_type": "i2v", "in_dim": 9},
        lambda draw: {**wan(draw), "x": video(draw, 9), "clip_fea": draw(1, 257, 1280)},
    ),
    Architecture(
        "Wan VACE",
        "wan.model:VaceWanModel",
        {**WAN, "vace_layers": 3, "vace_in_dim": 6},
        lambda draw: wan(draw, vace_context=draw(1, 1, 6, 3, 6, 10), vace_strength=[0.8]),
    ),
    Architecture(
        "Wan camera control",
        "wan.model:CameraWanModel",
        {**WAN, "model_type": "i2v", "in_dim_control_adapter": 2},
        lambda draw: wan(draw, camera_conditions=draw(1, 2, 3, 48, 80)),
    ),
    Architecture(
        "Wan S2V",
        "wan.model:WanModel_S2V",
        {
            **WAN,
            "audio_dim": 8,
            "cond_dim": 4,
            "audio_inject_layers": [0, 2, 4],
            "num_audio_token": 2,
        },
        lambda draw: wan(
            draw, audio_embed=draw(1, 25, 8, 12), reference_latent=draw(1, 4, 1, 6, 10)
        ),
    ),
    Architecture(
        "Wan HuMo",
        "wan.model:HumoWanModel",
        {**WAN, "audio_token_num": 16},
        lambda draw: wan(draw, audio_embed=draw(1, 3, 8, 5, 1280)),
    ),
    Architecture(
        "Wan Animate",
        "wan.model_animate:AnimateWanModel",
        {**WAN, "motion_encoder_dim": 512, "in_dim": 4},
        lambda draw: wan(draw, pose_latents=draw(1, 16, 2, 6, 10)),
    ),
    Architecture(
        "Wan SCAIL",
        "wan.model:SCAILWanModel",
        {**WAN, "model_type": "scail"},
        lambda draw: wan(draw, pose_latents=draw(1, 4, 3, 6, 10)),
    ),
    Architecture(
        "Wan SCAIL 2",
        "wan.model:SCAIL2WanModel",
        {**WAN, "model_type": "scail2", "mask_in_dim": 3},
        lambda draw: wan(
            draw,
            reference_latent=draw(1, 4, 1, 6, 10),
            ref_mask_latents=draw(1, 3, 4, 6, 10),
            pose_latents=draw(1, 4, 3, 3, 5),
        ),
    ),
    Architecture(
        "WanDancer",
        "wan.model_wandancer:WanDancerModel",
        {
            **{**WAN, "audio_inject_layers": [0, 2, 4]},
            "music_dim": 16,
            "music_heads": 2,
            "music_feature_dim": 6,
            "music_latent_dim": 16,
        },
        lambda draw: {
            "x": draw(1, 4, 3, 8, 8),  # the music wants eight parts per frame
            "context": text(draw, 1),
            "audio_embed": draw(1, 9, 6),
            "clip_fea": draw(1, 257, 1280),
        },
    ),
    Architecture("Hunyuan Video", "hunyuan_video.model:HunyuanVideo", HUNYUAN, hunyuan_video),
    Architecture(
        "Hunyuan Video 1.5, Hunyuan Image 2.1",
        "hunyuan_video.model:HunyuanVideo",
        {
            **{**HUNYUAN, "vec_in_dim": None, "guidance_embed": False, "byt5": True},
            "use_cond_type_embedding": True,
            "vision_in_dim": 8,
        },
        lambda draw: {
            **{key: value for key, value in hunyuan_video(draw).items() if key in ("x", "context")},
            "txt_byt5": draw(1, 3, 1472),
            "clip_fea": draw(1, 4, 8),
        },
    ),
    Architecture(
        "LTX-Video",
        "lightricks.model:LTXVModel",
        LTX,
        lambda draw: {
            "x": video(draw, 8),
            "context": text(draw, 1),
            "attention_mask": None,
        },
    ),
    Architecture(
        "LTX-2",
        "lightricks.av_model:LTXAVModel",
        LTX_AV,
        lambda draw: {
            "x": [video(draw, 8), draw(1, 8, 6, 16)],
            "context": text(draw, 1, 2 * 16),
            "a_timestep": torch.full((1,), 0.7),
            "attention_mask": None,
        },
    ),
    Architecture(
        "HiDream O1",
        "hidream_o1.model:HiDreamO1Transformer",
        HIDREAM_O1,
        lambda draw: hidream_o1(draw, picture=False),
        timestep=700.0,
    ),
    Architecture(
        "HiDream O1: edit",
        "hidream_o1.model:HiDreamO1Transformer",
        HIDREAM_O1,
        hidream_o1,
        timestep=700.0,
    ),
    Architecture(
        "Qwen-Image 2.1",
        "qwen_image21.model:QwenImage21Transformer2DModel",
        {
            **{"in_channels": 4, "out_channels": 4, "num_layers": 5, "num_attention_heads": 2},
            **{"attention_head_dim": 24, "context_in_dim": 16, "axes_dims_rope": (8, 8, 8)},
        },
        lambda draw: {
            **{"x": draw(2, 4, 6, 8), "context": text(draw)},
            **{"ref_latents": [draw(2, 4, 4, 6)], "image_slots": [3]},
        },
        is_newer=True,
    ),
    Architecture(
        "Kandinsky 6",
        "kandinsky6.model:Kandinsky6NativeAVDiT",
        {
            **{"in_visual_dim": 4, "out_visual_dim": 4, "visual_embed_dim": 36, "in_audio_dim": 6},
            **{"in_text_dim": 16, "in_text_dim2": 8, "time_dim": 32, "time_dim_a": 32},
            **{"model_dim": 48, "ff_dim": 64, "axes_dims": (8, 8, 8), "patch_size": (1, 2, 2)},
            **{"model_dim_a": 32, "ff_dim_a": 48, "head_dim_a": 16},
            **{"num_text_blocks": 1, "num_visual_blocks": 5},
        },
        lambda draw: {
            **{"x": [video(draw), draw(1, 5, 6)], "context": text(draw, 1), "y": draw(1, 8)},
        },
        timestep=700.0,
        is_newer=True,
    ),
    Architecture("MiniMax H3", "minimax.model:MiniMaxH3Model", MINIMAX, minimax, timestep=700.0),
    Architecture(
        "Mochi",
        "genmo.joint_model.asymm_models_joint:AsymmDiTJoint",
        {
            "in_channels": 4,
            "hidden_size_x": 48,
            "hidden_size_y": 32,
            "mlp_ratio_x": 256.0,  # a width of 12288, which the class asks for
            "mlp_ratio_y": 192.0,
            "depth": 4,
            "num_heads": 2,
            "use_t5": True,
            "t5_feat_dim": 16,
            "t5_token_length": 7,
            "learn_sigma": False,
            "rope_theta": 10000.0,
            "qk_norm": True,
            "qkv_bias": False,
            "out_bias": True,
        },
        lambda draw: {
            "x": video(draw),
            "context": text(draw, 1),
            "attention_mask": torch.ones(1, 7),
            "num_tokens": 7,
        },
    ),
    Architecture(
        "CogVideoX",
        "cogvideo.model:CogVideoXTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 32,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 32,
            "text_embed_dim": 16,
            "num_layers": 5,
            "use_rotary_positional_embeddings": True,
            "max_text_seq_length": 7,
        },
        wan,
        timestep=700.0,
    ),
    Architecture(
        "Kandinsky 5",
        "kandinsky5.model:Kandinsky5",
        {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "in_text_dim": 16,
            "in_text_dim2": 8,
            "time_dim": 16,
            "model_dim": 48,
            "ff_dim": 64,
            "visual_embed_dim": 16,
            "num_visual_blocks": 4,
            "axes_dims": (8, 8, 8),
        },
        lambda draw: wan(draw, y=draw(1, 8)),
    ),
    Architecture(
        "ACE-Step",
        "ace.model:ACEStepTransformer2DModel",
        {
            "num_layers": 5,
            "inner_dim": 48,
            "attention_head_dim": 24,
            "num_attention_heads": 2,
            "mlp_ratio": 2.0,
            "speaker_embedding_dim": 8,
            "text_embedding_dim": 16,
            "lyric_encoder_vocab_size": 20,
            "lyric_hidden_size": 1024,
            "ssl_latent_dims": [8, 8],
            "patch_size": [16, 1],
            "max_width": 64,
        },
        lambda draw: {
            "x": draw(2, 8, 16, 11),
            "context": text(draw),
            "speaker_embeds": draw(2, 8),
            "lyric_token_idx": draw.tokens(20, 2, 6),
        },
    ),
    Architecture(
        "ACE-Step 1.5",
        "ace.ace_step15:AceStepConditionGenerationModel",
        {
            "in_channels": 12,
            "hidden_size": 32,
            "text_hidden_dim": 16,
            "timbre_hidden_dim": 4,
            "audio_acoustic_hidden_dim": 4,
            "num_dit_layers": 4,
            "num_lyric_layers": 1,
            "num_timbre_layers": 1,
            "num_tokenizer_layers": 1,
            "num_heads": 2,
            "num_kv_heads": 1,
            "head_dim": 16,
            "intermediate_size": 48,
            "encoder_hidden_size": 32,
            "encoder_intermediate_size": 48,
            "encoder_num_heads": 2,
            "fsq_dim": 32,
        },
        lambda draw: {
            "x": draw(1, 4, 10),
            "context": text(draw, 1),
            "lyric_embed": draw(1, 6, 16),
            "refer_audio": draw(1, 4, 10),
        },
    ),
    Architecture(
        "Stable Audio",
        "audio.dit:AudioDiffusionTransformer",
        {
            "io_channels": 4,
            "embed_dim": 64,
            "cond_token_dim": 32,
            "global_cond_dim": 8,
            "project_global_cond": True,
            "depth": 5,
            "num_heads": 2,
        },
        lambda draw: {
            "x": draw(2, 4, 21),
            "cross_attn_cond": text(draw, width=32),
            "global_embed": draw(2, 8),
        },
    ),
    Architecture(
        "Hunyuan3D 2",
        "hunyuan3d.model:Hunyuan3Dv2",
        {
            "in_channels": 4,
            "context_in_dim": 16,
            "hidden_size": 32,
            "num_heads": 2,
            "depth": 3,
            "depth_single_blocks": 3,
        },
        lambda draw: {"x": draw(2, 4, 19), "context": text(draw)},
    ),
    Architecture(
        "Hunyuan3D 2.1",
        "hunyuan3dv2_1.hunyuandit:HunYuanDiTPlain",
        {
            "in_channels": 4,
            "hidden_size": 32,
            "context_dim": 16,
            "depth": 7,
            "num_heads": 2,
            "num_moe_layers": 2,
            "num_experts": 2,
            "guidance_cond_proj_dim": 8,
        },
        lambda draw: {"x": draw(2, 4, 19), "context": text(draw)},
    ),
    Architecture(
        "Ideogram 4",
        "ideogram4.model:Ideogram4Transformer2DModel",
        {
            "in_channels": 4,
            "num_layers": 5,
            "num_attention_heads": 2,
            "attention_head_dim": 32,
            "intermediate_size": 48,
            "adaln_dim": 16,
            "llm_features_dim": 16,
            "mrope_section": (6, 5, 5),
        },
        lambda draw: {"x": draw(2, 4, 6, 8), "context": text(draw)},
    ),
    Architecture(
        "Krea 2",
        "krea2.model:SingleStreamDiT",
        {
            "features": 48,
            "tdim": 16,
            "txtdim": 16,
            "heads": 2,
            "kvheads": 1,
            "multiplier": 2,
            "layers": 5,
            "channels": 4,
            "txtlayers": 3,
            "txtheads": 2,
            "txtkvheads": 2,
        },
        lambda draw: {"x": draw(2, 4, 9, 14), "context": draw(2, 7, 3 * 16)},
    ),
    Architecture(
        "Ernie Image",
        "ernie.model:ErnieImageModel",
        {
            "hidden_size": 48,
            "num_attention_heads": 2,
            "num_layers": 5,
            "ffn_hidden_size": 64,
            "in_channels": 4,
            "out_channels": 4,
            "text_in_dim": 16,
            "rope_axes_dim": (8, 8, 8),
        },
        lambda draw: {"x": draw(2, 4, 5, 7), "context": text(draw)},
        timestep=700.0,
    ),
    Architecture(
        "JoyImage",
        "joyimage.model:JoyImageTransformer3DModel",
        {
            "in_channels": 4,
            "hidden_size": 48,
            "num_attention_heads": 2,
            "text_dim": 16,
            "num_layers": 5,
            "rope_dim_list": [8, 8, 8],
        },
        wan,
        timestep=700.0,
    ),
    Architecture(
        "Lens",
        "lens.model:LensTransformer2DModel",
        {
            "in_channels": 4,
            "out_channels": 1,
            "num_layers": 5,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "enc_hidden_dim": 16,
            "axes_dims_rope": (4, 6, 6),
            "selected_layer_index": (0, 1),
        },
        lambda draw: {"x": draw(2, 4, 5, 7), "context": draw(2, 7, 2 * 16)},
    ),
    Architecture(
        "PixelDiT",
        "pixeldit.model:PixDiT_T2I",
        PIXEL_DIT,
        lambda draw: {"x": draw(2, 3, 10, 14), "context": text(draw)},
    ),
    Architecture(
        "PiD",
        "pixeldit.pid:PidNet",
        {
            **PIXEL_DIT,
            "lq_latent_channels": 4,
            "lq_hidden_dim": 8,
            "lq_num_res_blocks": 1,
            "latent_spatial_down_factor": 1,
            "pit_lq_inject": True,
        },
        lambda draw: {
            "x": draw(2, 3, 10, 14),
            "context": text(draw),
            "lq_latent": draw(2, 4, 5, 7),
            "degrade_sigma": torch.tensor([0.3]),
        },
    ),
    Architecture(
        "TripoSplat",
        "triposplat.model:LatentSeqMMFlowModel",
        {
            "q_token_length": 16,
            "in_channels": 4,
            "model_channels": 32,
            "cond_channels": 16,
            "out_channels": 4,
            "num_blocks": 4,
            "num_head_channels": 16,
            "cond2_channels": 8,
        },
        lambda draw: {"x": [draw(1, 16, 4), draw(1, 1, 5)], "context": text(draw, 1)},
    ),
    Architecture(
        "SeedVR2",
        "seedvr.model:NaDiT",
        {
            "norm_eps": 1e-5,
            "num_layers": 4,
            "mlp_type": "swiglu",
            "vid_dim": 48,
            "txt_in_dim": 16,
            "heads": 2,
            "head_dim": 24,
            "rope_dim": 24,
            "mm_layers": 2,
            "vid_out_norm": True,
        },
        lambda draw: {
            "x": draw(2, 16, 3, 8, 12),
            "context": text(draw),
            "condition": draw(2, 17, 3, 8, 12),
        },
        timestep=700.0,
    ),
    Architecture(
        "Stable Cascade, stage C",
        "cascade.stage_c:StageC",
        {
            "c_in": 4,
            "c_out": 4,
            "c_r": 8,
            "c_cond": 32,
            "c_hidden": [32, 32],
            "nhead": [2, 2],
            "blocks": [[2, 2], [2, 2]],
            "c_clip_text": 16,
            "c_clip_text_pooled": 16,
            "c_clip_img": 8,
        },
        lambda draw: {
            "x": draw(2, 4, 6, 8),
            "clip_text": text(draw),
            "clip_text_pooled": draw(2, 1, 16),
            "clip_img": draw(2, 1, 8),
        },
    ),
)
