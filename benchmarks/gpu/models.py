"""Models with layers of full size and random weights, as files, and what they are sampled with."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.full_size import FLUX, SDXL, WAN


@dataclass(frozen=True)
class Model:
    """A model to be written and sampled.

    Attributes:
        path: the class, within ComfyUI's models.
        config: its arguments, with fewer blocks than the real one where it has many of a kind.
        dtypes: of the file, by names in torch; several runs.
        latent: shape of what is sampled.
        context: tokens and width of a cond.
        pooled: width of the pooled text; 0: there is none.
    """

    path: str
    config: Mapping[str, Any]
    dtypes: tuple[str, ...]
    latent: tuple[int, ...]
    context: tuple[int, int]
    pooled: int = 0


MODELS = {
    "sdxl": Model(
        "modules.diffusionmodules.openaimodel:UNetModel",
        *(SDXL, ("float16",), (1, 4, 128, 128), (77, 2048), 1280),
    ),
    "flux": Model(
        "flux.model:Flux",
        {**FLUX, "depth": 5, "depth_single_blocks": 10},
        *(("bfloat16", "float8_e4m3fn"), (1, 16, 128, 128), (256, 4096), 768),
    ),
    "wan": Model(
        "wan.model:WanModel",
        {**WAN, "num_layers": 10, "text_len": 512},
        *(("bfloat16", "float16", "float8_e4m3fn"), (1, 16, 9, 60, 104), (512, 4096)),
    ),
    # To try this program where there is no GPU.
    "tiny": Model(
        "flux.model:Flux",
        {
            **{**FLUX, "hidden_size": 256, "num_heads": 2, "depth": 2, "depth_single_blocks": 3},
            **{"vec_in_dim": 768, "context_in_dim": 4096},
        },
        *(("float32",), (1, 16, 8, 8), (16, 4096), 768),
    ),
}


def write(model: Model, dtype: str, path: Path) -> None:
    """Write the model with random weights, of a size at which it computes numbers."""
    import comfy.ops
    import torch
    from safetensors.torch import save_file

    module, _, name = model.path.partition(":")
    cls = getattr(importlib.import_module(f"comfy.ldm.{module}"), name)
    on_meta: dict[str, Any] = {"device": torch.device("meta"), "dtype": torch.float32}
    built = cls(**model.config, **on_meta, operations=comfy.ops.disable_weight_init)
    draw = torch.Generator().manual_seed(0)
    weights = {}
    for key, value in built.state_dict().items():
        if value.ndim == 1:
            of_norm = key.endswith(("weight", "scale")) and "modulation" not in key
            weight = torch.full(value.shape, 1.0 if of_norm else 0.01)
        else:
            weight = torch.randn(value.shape, generator=draw) / value[0].numel() ** 0.5
        weights[key] = weight.to(getattr(torch, dtype))
    save_file(weights, path)


def conds(model: Model) -> list[list[Any]]:
    """A cond and an uncond."""
    import torch

    draw = torch.Generator().manual_seed(1)
    found = []
    for _ in range(2):
        tokens = torch.randn(1, *model.context, generator=draw)
        pooled = torch.randn(1, model.pooled, generator=draw) if model.pooled else None
        found.append([[tokens, {} if pooled is None else {"pooled_output": pooled}]])
    return found
