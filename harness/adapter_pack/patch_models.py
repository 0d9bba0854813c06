"""Models of patches, and ControlNets, for the tiny models of own_process/template_models.py.

ComfyUI's own loader of such files takes them at full size only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import comfy.cldm.dit_embedder
import comfy.controlnet
import comfy.ldm.anima.lllite
import comfy.ldm.lumina.controlnet
import comfy.ldm.qwen_image.controlnet
import comfy.ldm.wan.model_multitalk
import comfy.ldm.wan.uni3c
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch

import nodes

from .stand_ins import StandIn

WIDTH = {"qwen-image": 32, "anima": 64, "flux-schnell": 32, "wan-t2v": 48, "sd3.5": 256}
FLOAT = {"dtype": torch.float32, "operations": comfy.ops.manual_cast}


def _class(name: str) -> Any:
    """A class beside ComfyUI's nodes, which no other module can import."""
    loader = nodes.NODE_CLASS_MAPPINGS["ModelPatchLoader"]
    return getattr(sys.modules[loader.__module__], name)


def qwen() -> torch.nn.Module:
    kind = _class("QwenImageBlockWiseControlNet")
    made: torch.nn.Module = kind(num_layers=5, dim=WIDTH["qwen-image"], **FLOAT)
    return made


def style() -> torch.nn.Module:
    kind = _class("SigLIPMultiFeatProjModel")
    made: torch.nn.Module = kind(6, 3, 8, WIDTH["flux-schnell"], **FLOAT)
    return made


def uni3c() -> torch.nn.Module:
    width = WIDTH["wan-t2v"]
    sizes = {"conv_out_dim": width, "dim": 192, "ffn_dim": 64, "num_layers": 4}
    sizes |= {"time_embed_dim": width, "out_proj_dim": width, "mid_channels": 16}
    return comfy.ldm.wan.uni3c.WanUni3CControlnet(**sizes, **FLOAT)


def lllite() -> torch.nn.Module:
    """Of attention and MLPs of all five blocks."""
    cond, hidden, width = 8, 6, WIDTH["anima"]
    targets = [f"self_attn_{name}_proj" for name in "qkv"] + ["cross_attn_q_proj", "mlp_layer1"]
    shapes = {
        "lllite_conditioning1.conv1.weight": (cond // 2, 3, 4, 4),
        "lllite_conditioning1.conv3.weight": (cond, cond // 2, 4, 4),
        "lllite_conditioning1.proj.weight": (cond, cond, 1, 1),
    }
    for name in (f"lllite_dit_blocks_{block}_{target}" for block in range(5) for target in targets):
        shapes[f"{name}.down.weight"] = (hidden, width)
        shapes[f"{name}.cond_to_film.weight"] = (2 * hidden, cond)
    state = {name: torch.empty(shape) for name, shape in shapes.items()}
    return comfy.ldm.anima.lllite.AnimaLLLite(state, {}, **FLOAT)


def z_image(**more: Any) -> torch.nn.Module:
    """With so many layers every second one of the model has one of its own."""
    sizes = {"dim": 256, "n_heads": 4, "n_kv_heads": 4, "multiple_of": 16, "n_control_layers": 15}
    kind = comfy.ldm.lumina.controlnet.ZImage_Control
    return kind(**{**sizes, "ffn_dim_multiplier": 1.0, **more}, **FLOAT)


def talk(width: int = WIDTH["wan-t2v"]) -> torch.nn.Module:
    """InfiniteTalk's. Its class has widths and heads of the full size."""
    multitalk, text = comfy.ldm.wan.model_multitalk, 24
    kind = _class("MultiTalkModelPatch")
    made: torch.nn.Module = kind.__new__(kind)
    torch.nn.Module.__init__(made)
    sizes = {"seq_len": 5, "seq_len_vf": 8, "blocks": 2, "channels": 8, "intermediate_dim": 16}
    made.audio_proj = multitalk.MultiTalkAudioProjModel(
        **sizes, out_dim=text, context_tokens=4, **FLOAT
    )
    made.blocks = torch.nn.ModuleList()
    for _ in range(10):  # the model has fewer
        block = torch.nn.Module()
        block.audio_cross_attn = multitalk.SingleStreamMultiAttention(width, text, 2, True, **FLOAT)
        block.norm_x = comfy.ops.manual_cast.LayerNorm(width, dtype=torch.float32)
        made.blocks.append(block)
    return made


# As the files of versions 2 and 2.1 have them.
REFINED = {"refiner_control": True, "additional_in_dim": 17}
KINDS: dict[str, Callable[[], torch.nn.Module]] = {
    **{"qwen": qwen, "style": style, "uni3c": uni3c, "lllite": lllite},
    "talk": talk,
    "talk, wide": lambda: talk(256),
    "z-image": z_image,
    "z-image, every layer": lambda: z_image(n_control_layers=30),
    "z-image 2": lambda: z_image(**REFINED, broken=True),
    "z-image 2.1": lambda: z_image(**REFINED),
}


def filled(model: torch.nn.Module) -> torch.nn.Module:
    """With random weights."""
    draw = torch.Generator().manual_seed(23)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        fan = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.copy_(torch.randn(parameter.shape, generator=draw) / fan**0.5)
    return model


class OneOf(StandIn):
    """A node that makes one of several kinds."""

    KINDS: Mapping[str, Any]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {"kind": (list(cls.KINDS),)}}


class TestPatchModel(OneOf):
    """One of them, with random weights."""

    RETURN_TYPES = ("MODEL_PATCH",)
    KINDS = KINDS

    def make(self, kind: str) -> tuple[Any]:
        model = filled(KINDS[kind]())
        management = comfy.model_management
        return (
            comfy.model_patcher.CoreModelPatcher(
                model,
                load_device=management.get_torch_device(),
                offload_device=management.unet_offload_device(),
            ),
        )


def of_stability(is_double: bool) -> torch.nn.Module:
    """For SD 3.5; it takes the embedder of the text or that of the picture from the MODEL."""
    width = WIDTH["sd3.5"]
    sizes = {"in_chans": 16, "attention_head_dim": 64, "num_attention_heads": width // 64}
    sizes |= {"adm_in_channels": 2048, "num_layers": 2, "main_model_double": width // 64}
    return comfy.cldm.dit_embedder.ControlNetEmbedder(
        img_size=None, patch_size=2, double_y_emb=is_double, device="cpu", **sizes, **FLOAT
    )


def qwen_fun() -> torch.nn.Module:
    """It computes with the embedders of the MODEL."""
    return comfy.ldm.qwen_image.controlnet.QwenImageFunControlNetModel(
        inner_dim=WIDTH["qwen-image"], num_attention_heads=2, attention_head_dim=16, **FLOAT
    )


CONTROLS: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[Any], Any]]] = {
    "sd3.5, text": (lambda: of_stability(True), comfy.controlnet.load_controlnet_sd35),
    "sd3.5, picture": (lambda: of_stability(False), comfy.controlnet.load_controlnet_sd35),
    "qwen fun": (qwen_fun, comfy.controlnet.load_controlnet_qwen_fun),
}


class TestControlNet(OneOf):
    """A ControlNet by ComfyUI's own loader, with random weights."""

    RETURN_TYPES = ("CONTROL_NET",)
    KINDS = CONTROLS

    def make(self, kind: str) -> tuple[Any]:
        make, load = CONTROLS[kind]
        return (load(filled(make()).state_dict()),)
