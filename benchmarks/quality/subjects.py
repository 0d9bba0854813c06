"""What is sampled: the demonstration's model, or a checkpoint of the user's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import comfy.sd
import comfy.utils
import numpy as np
import torch

from demo.shapes import (
    CLASSIFIER,
    CODEC,
    DIFFUSION_MODEL,
    DIFFUSION_MODELS,
    WEIGHTS,
    checker,
    text,
)
from demo.shapes.classifier import Features
from demo.shapes.codec import CHANNELS, PATCH, Codec
from demo.shapes.scenes import SIZE, draw, split

from .metrics import FrechetDistance, PerceptualDistance
from .sampling import Sampler


class Batch(NamedTuple):
    """What one sampling run makes: a picture for each prompt."""

    positive: Any
    negative: Any
    empty: torch.Tensor
    seed: int


class Subject(ABC):
    """A model with what it takes to sample and to judge it.

    Attributes:
        name: for titles.
        model: a stock MODEL.
        sampler: how its full run is sampled.
        prompts: one for each picture.
    """

    name: str
    model: Any
    sampler: Sampler
    prompts: Sequence[str]

    @abstractmethod
    def batches(self) -> Iterator[Batch]:
        """Every picture once."""

    @abstractmethod
    def decode(self, latent: torch.Tensor) -> np.ndarray:
        """Pictures [batch, height, width, 3] in 0..1; of a video every frame."""

    def judge(self, pictures: np.ndarray, stock: np.ndarray) -> dict[str, float]:
        """Measures beside PSNR and SSIM, by name."""
        return {}


class Shapes(Subject):
    """The demonstration's model, on prompts that it has not been trained with.

    Args:
        num_prompts: of the hundred that there are.
        seeds: pictures per prompt.
        skip: so many prompts at the beginning.
    """

    BATCH = 25
    SHIFT = 3.0  # of the sigmas, as in the demonstration's workflow

    def __init__(self, sampler: Sampler, num_prompts: int, seeds: int, skip: int = 0) -> None:
        from comfy_extras.nodes_model_advanced import ModelSamplingSD3

        self.name = "demonstration model"
        loaded = comfy.sd.load_diffusion_model(str(DIFFUSION_MODELS / DIFFUSION_MODEL))
        (self.model,) = ModelSamplingSD3().patch(loaded, self.SHIFT)
        self.sampler = sampler
        self._codec = Codec.load(WEIGHTS / CODEC)
        self._seeds = seeds
        held_out = split()[1][skip : min(100, skip + num_prompts)]
        self._scenes = [scene for _ in range(seeds) for scene in held_out]
        self.prompts = [scene.prompt for scene in self._scenes]
        features = Features.load(WEIGHTS / CLASSIFIER)
        real = draw(held_out * -(-2000 // len(held_out)), np.random.default_rng(1))
        self._distance = FrechetDistance(features, real)

    def batches(self) -> Iterator[Batch]:
        per_seed = len(self.prompts) // self._seeds
        for start in range(0, per_seed * self._seeds, per_seed):
            of_seed = self.prompts[start : start + per_seed]
            for first in range(0, per_seed, self.BATCH):
                prompts = of_seed[first : first + self.BATCH]
                context = torch.cat([text.encode(prompt) for prompt in prompts])
                empty = torch.zeros(len(prompts), CHANNELS, 1, SIZE // PATCH, SIZE // PATCH)
                yield Batch([[context, {}]], [[text.encode(""), {}]], empty, 1 + start + first)

    def decode(self, latent: torch.Tensor) -> np.ndarray:
        return self._codec.decode(latent.float().cpu()).numpy()

    def judge(self, pictures: np.ndarray, stock: np.ndarray) -> dict[str, float]:
        read = (checker.read(picture) for picture in pictures)
        right = [found.shows(scene) for found, scene in zip(read, self._scenes, strict=True)]
        return {"accuracy": sum(right) / len(right), "frechet": self._distance(pictures)}


class Checkpoint(Subject):
    """A checkpoint with its text encoder and its VAE.

    Args:
        path: of the checkpoint.
        prompts: what to sample.
        negative: the negative prompt of them all.
        size: width and height in pixels.
    """

    def __init__(
        self,
        path: Path,
        sampler: Sampler,
        prompts: Sequence[str],
        negative: str,
        size: tuple[int, int],
        seeds: int,
    ) -> None:
        self.name, self.sampler = path.stem, sampler
        self.model, clip, self._vae, *_ = comfy.sd.load_checkpoint_guess_config(
            str(path), output_vae=True, output_clip=True
        )
        if clip is None or self._vae is None:
            raise SystemExit(f"{path} is no full checkpoint: it lacks a text encoder or a VAE")
        self.prompts = [prompt for _ in range(seeds) for prompt in prompts]
        self._conds = {
            prompt: clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
            for prompt in {*prompts, negative}
        }
        self._negative = negative
        ratio = self.model.get_model_object("latent_format").spacial_downscale_ratio
        self._empty = torch.zeros(1, 4, size[1] // ratio, size[0] // ratio)
        self._perceptual = PerceptualDistance.if_installed()

    def batches(self) -> Iterator[Batch]:
        for seed, prompt in enumerate(self.prompts, start=1):
            yield Batch(self._conds[prompt], self._conds[self._negative], self._empty, seed)

    def decode(self, latent: torch.Tensor) -> np.ndarray:
        pictures = self._vae.decode(latent).float().cpu()
        return pictures.reshape(-1, *pictures.shape[-3:]).clamp(0, 1).numpy()

    def judge(self, pictures: np.ndarray, stock: np.ndarray) -> dict[str, float]:
        if self._perceptual is None:
            return {}
        return {"lpips": self._perceptual(pictures, stock)}
