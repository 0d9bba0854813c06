"""The tokens of an image that there is none of."""

import torch

WIDTH = 64


def of_image(seed: int) -> torch.Tensor:
    """[8, 64]"""
    return torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(seed))


def widen(tokens: torch.Tensor, width: int) -> torch.Tensor:
    """[8, width]: the same values again and again."""
    return tokens.repeat(1, -(-width // WIDTH))[:, :width]
