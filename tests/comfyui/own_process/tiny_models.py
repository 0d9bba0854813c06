"""Tiny random MODELs of a few architectures, in ComfyUI's own classes. Workers import this too."""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
import comfy.supported_models
import torch
from comfy.nested_tensor import NestedTensor

from harness.own_process.architectures import COSMOS2, FLUX, HIDREAM_O1, LUMINA, MINIMAX, WAN

SIXTEEN = {"in_channels": 16, "out_channels": 16}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "Flux.1 without a layout": ("Flux", {**FLUX, **SIXTEEN, "image_model": "flux"}),
    "Lumina 2": ("Lumina2", {**LUMINA, "in_channels": 16, "image_model": "lumina2"}),
    "Wan VACE": (
        "WAN21_Vace",
        {
            **{**WAN, "in_dim": 16, "out_dim": 16, "vace_layers": 3, "vace_in_dim": 96},
            "image_model": "wan2.1",
            "model_type": "vace",
        },
    ),
    "HunyuanDiT": (
        "HunyuanDiT",
        {
            "image_model": "hydit",
            "hidden_size": 48,
            "depth": 8,
            "num_heads": 2,
            "text_states_dim": 16,
            "text_states_dim_t5": 16,
            "text_len": 7,
            "text_len_t5": 9,
        },
    ),
    "Anima": (
        "Anima",
        {**COSMOS2, **SIXTEEN, "crossattn_emb_channels": 1024, "image_model": "anima"},
    ),
    "HiDream O1": ("HiDreamO1", {**HIDREAM_O1, "image_model": "hidream_o1"}),
    "MiniMax H3": ("MiniMaxH3", {**MINIMAX, "image_model": "minimax_h3"}),
}

# A name that ends so stands for a class that AsyncDiff does not know.
WITHOUT_LAYOUT = " without a layout"
CONFIGS[REFUSED := "HunyuanDiT" + WITHOUT_LAYOUT] = CONFIGS["HunyuanDiT"]


def load(name: str) -> Any:
    """A ModelPatcher, the same weights every time."""
    kind, unet_config = CONFIGS[name]
    config = getattr(comfy.supported_models, kind)({**unet_config, "dtype": torch.float32})
    cpu = torch.device("cpu")
    model = config.get_model({}, "", device=cpu)
    if name.endswith(WITHOUT_LAYOUT):
        original = type(model.diffusion_model)
        model.diffusion_model.__class__ = type(f"Other{original.__name__}", (original,), {})
    generator = torch.Generator().manual_seed(3)
    state = {}
    for key, value in model.diffusion_model.state_dict().items():
        if value.numel() > 2**24:
            state[key] = torch.zeros(value.shape)  # Anima's table of words
        elif value.ndim == 1:
            state[key] = torch.full(value.shape, 1.0 if key.endswith("weight") else 0.01)
        else:
            fan_in = value[0].numel()
            state[key] = torch.randn(value.shape, generator=generator) / fan_in**0.5
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
    model.load_model_weights(state, "")
    patcher.cached_patcher_init = (load, (name,))
    return patcher


def conditioning(name: str, seed: int) -> list[Any]:
    """A prompt as the text encoders of this model would give it."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    if name == "Anima":
        words = {"t5xxl_ids": torch.arange(5) + seed, "t5xxl_weights": torch.ones(5)}
        return [[draw(1, 7, 1024), words]]
    if name == "HiDream O1":  # with a picture to edit; two prompts of unlike length
        words = torch.tensor([[151644, 872, 198, *range(64, 66 + seed), 151645]])
        pictures = [torch.rand((1, 40, 56, 3), generator=generator)]
        return [[draw(1, 7, 64), {"text_input_ids": words, "reference_latents": pictures}]]
    if name == "MiniMax H3":
        frame = draw(1, 24, 1, 4, 6)
        more = {"minimax_keyframes": [{"resolved_frame_index": 0, "latent": frame}]}
        return [[draw(1, 7, 16), {**more, "minimax_frame_count": 5}]]
    more: dict[str, Any] = {"pooled_output": draw(1, 8)}
    if name.startswith("HunyuanDiT"):
        more |= {
            "attention_mask": torch.ones(1, 7),
            "conditioning_mt5xl": draw(1, 9, 16),
            "attention_mask_mt5xl": torch.ones(1, 9),
        }
    return [[draw(1, 7, 16), more]]


def empty_latent(name: str) -> Any:
    if name == "MiniMax H3":
        return NestedTensor((torch.zeros(1, 24, 2, 4, 6), torch.zeros(1, 32, 2, 8)))
    if name == "HiDream O1":
        return torch.zeros(1, 3, 64, 96)
    channels = 4 if name.startswith("HunyuanDiT") else 16
    frames = {"Wan VACE": (3,), "Anima": (1,)}.get(name, ())
    return torch.zeros(1, channels, *frames, 10, 12)
