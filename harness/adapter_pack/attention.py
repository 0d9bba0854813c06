"""Cross attention to text and to the tokens of an image."""

from __future__ import annotations

from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention

from . import tokens


class ImageAttention:
    """An attn2 replacement; `weight` says how much the image counts, for conds alone."""

    def __init__(self, weight: float, seed: int) -> None:
        self.weight = weight
        self.tokens = tokens.of_image(seed)  # [8, 64]

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra_options: dict[str, Any]
    ) -> torch.Tensor:
        heads = extra_options["n_heads"]
        image = tokens.widen(self.tokens.to(q), q.shape[-1]).expand(q.shape[0], -1, -1)
        seen = optimized_attention(q, image, image, heads)
        kinds = extra_options["cond_or_uncond"]
        scale = torch.tensor([0.0 if kind else self.weight for kind in kinds], device=q.device)
        scale = scale.repeat_interleave(q.shape[0] // len(kinds)).view(-1, 1, 1)
        return optimized_attention(q, k, v, heads) + scale.to(q) * seen
