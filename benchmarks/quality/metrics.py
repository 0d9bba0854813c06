"""How far pictures are from others, and how far stale activations are from fresh ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.utils import _pytree as pytree
from torchmetrics.image.fid import FrechetInceptionDistance


def psnr(ours: np.ndarray, stock: np.ndarray, data_range: float) -> float | None:
    """Peak signal-to-noise ratio over all of it, in dB; None if they are equal."""
    if np.array_equal(ours, stock):
        return None
    return float(peak_signal_noise_ratio(stock, ours, data_range=data_range))


def latent_psnr(ours: np.ndarray, stock: np.ndarray) -> dict[str, float | None]:
    """PSNR of latents [batch, ...] over all of them, and the median and the worst of one picture.

    The one over all of them is ruled by a picture that turns out another one.
    """
    data_range = float(stock.max() - stock.min())
    each = [psnr(*pair, data_range) for pair in zip(ours, stock, strict=True)]
    values = [math.inf if value is None else value for value in each]
    median, worst = float(np.median(values)), min(values)
    return {
        "latent_psnr": psnr(ours, stock, data_range),
        "latent_median": median if math.isfinite(median) else None,
        "latent_worst": worst if math.isfinite(worst) else None,
    }


def ssim(ours: np.ndarray, stock: np.ndarray) -> float:
    """Structural similarity, the mean over pictures [batch, height, width, 3] in 0..1."""
    pairs = zip(stock, ours, strict=True)
    values = [structural_similarity(a, b, channel_axis=-1, data_range=1.0) for a, b in pairs]
    return float(np.mean(values))


class FrechetDistance:
    """The Fréchet distance of features to those of real pictures.

    Args:
        features: [batch, 3, height, width] uint8 to [batch, `num_features`].
        real: pictures [batch, height, width, 3] in 0..1.
    """

    def __init__(self, features: torch.nn.Module, real: np.ndarray) -> None:
        self._metric = FrechetInceptionDistance(feature=features, reset_real_features=False)
        self._metric.update(_to_bytes(real), real=True)

    def __call__(self, pictures: np.ndarray) -> float:
        self._metric.reset()
        self._metric.update(_to_bytes(pictures), real=False)
        return float(self._metric.compute())


def _to_bytes(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((pictures * 255).round().astype(np.uint8)).movedim(-1, 1)


class PerceptualDistance:
    """LPIPS, the measure of the paper, if the user has the package `lpips` installed."""

    @classmethod
    def if_installed(cls) -> PerceptualDistance | None:
        try:
            import lpips
        except ImportError:
            return None
        return cls(lpips.LPIPS(net="alex", verbose=False))

    def __init__(self, network: Any) -> None:
        self._network = network

    @torch.no_grad()
    def __call__(self, ours: np.ndarray, stock: np.ndarray) -> float:
        pairs = zip(_to_signed(ours), _to_signed(stock), strict=True)
        return float(np.mean([self._network(a[None], b[None]).item() for a, b in pairs]))


def _to_signed(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).float().movedim(-1, 1) * 2 - 1


def relative_distance(stale: Any, fresh: Any) -> float:
    """Relative L2 distance of two structures of tensors: |stale - fresh| / |fresh|."""
    pairs = [
        (a.double(), b.double())
        for a, b in zip(pytree.tree_leaves(stale), pytree.tree_leaves(fresh), strict=True)
        if isinstance(b, torch.Tensor)
    ]
    difference = sum((a - b).square().sum().item() for a, b in pairs)
    return math.sqrt(difference / sum(b.square().sum().item() for _, b in pairs))
