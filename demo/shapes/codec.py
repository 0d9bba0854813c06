"""Pictures to latents and back: a linear map of patches, fitted in closed form.

Each patch of 4x4 pixels becomes 16 channels, its principal components. They are scaled so that the
stock Wan 2.1 latent format, through which ComfyUI's sampler sees them, makes them of order one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

PATCH = 4  # pixels
CHANNELS = 16


class Codec:
    """A linear patch codec.

    Args:
        basis: [CHANNELS, PATCH * PATCH * 3], what a unit of each channel draws.
        mean: [PATCH * PATCH * 3], the patch that the latent of `offset` draws.
        offset: [CHANNELS].
    """

    def __init__(self, basis: torch.Tensor, mean: torch.Tensor, offset: torch.Tensor) -> None:
        self.basis, self.mean, self.offset = basis, mean, offset
        self._analysis = torch.linalg.pinv(basis)

    @classmethod
    def fit(
        cls, pictures: torch.Tensor, format_mean: torch.Tensor, format_std: torch.Tensor
    ) -> Codec:
        """The codec that loses least of `pictures`.

        Args:
            pictures: [batch, height, width, 3], between 0 and 1.
            format_mean: [CHANNELS], of the latent format.
            format_std: [CHANNELS], of the latent format.
        """
        patches = _to_patches(pictures).reshape(-1, PATCH * PATCH * 3).double()
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        values, vectors = values.flip(0)[:CHANNELS], vectors.flip(1)[:, :CHANNELS]
        # Between equal variance of all channels and that of the pixels: edges must count, but
        # not as much as colours.
        strength = values.clamp(min=values[0] * 1e-6).sqrt() ** 0.5
        scale = strength * (values.sum() / CHANNELS / (strength**2).mean()).sqrt()
        scale *= (values / scale**2).mean().sqrt()  # so that the whole has variance one
        basis = vectors.T * (scale / format_std.double())[:, None]
        return cls(basis.float(), mean.float(), format_mean.float())

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """[batch, height, width, 3] to a latent [batch, CHANNELS, 1, height / 4, width / 4]."""
        latents = (_to_patches(pictures) - self.mean) @ self._analysis + self.offset
        return latents.movedim(-1, 1).unsqueeze(2)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The way back, clipped to between 0 and 1."""
        patches = (latents.squeeze(2).movedim(1, -1) - self.offset) @ self.basis + self.mean
        batch, rows, columns, _ = patches.shape
        patches = patches.reshape(batch, rows, columns, PATCH, PATCH, 3).movedim(3, 2)
        return patches.reshape(batch, rows * PATCH, columns * PATCH, 3).clamp(0, 1)

    def save(self, path: Path) -> None:
        save_file({"basis": self.basis, "mean": self.mean, "offset": self.offset}, path)

    @classmethod
    def load(cls, path: Path) -> Codec:
        return cls(**load_file(path))


def _to_patches(pictures: torch.Tensor | np.ndarray) -> torch.Tensor:
    """[batch, rows, columns, PATCH * PATCH * 3]."""
    pictures = torch.as_tensor(pictures)
    batch, height, width, _ = pictures.shape
    patches = pictures.reshape(batch, height // PATCH, PATCH, width // PATCH, PATCH, 3)
    return patches.movedim(3, 2).flatten(3)
