"""A small classifier of the pictures, for its features: what a Fréchet distance compares.

    python3 dev.py python -m demo.shapes.classifier --out DIR

It learns to say count, colour, shape and background, in about three minutes. It judges no picture:
that is what `checker` is for.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from . import CLASSIFIER
from .scenes import COLOURS, COUNTS, SHAPES, Scene, all_scenes, draw

WIDTH = 32  # features
HEADS = {
    "count": COUNTS,
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "background": tuple(COLOURS),
}
STEPS, BATCH, RATE = 1500, 64, 3e-3


class Features(nn.Module):
    """uint8 pictures [batch, 3, 64, 64] to features [batch, WIDTH]."""

    num_features = WIDTH

    def __init__(self) -> None:
        super().__init__()
        channels = (3, 16, 32, 48, 64)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, WIDTH))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.body(pictures.float() / 127.5 - 1)
        return features

    @classmethod
    def load(cls, path: Path) -> Features:
        """The trained one.

        Raises:
            FileNotFoundError: there is no such file.
        """
        features = cls()
        features.load_state_dict(load_file(path))
        return features.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    features, accuracy = train(options.seed, options.steps)
    options.out.mkdir(parents=True, exist_ok=True)
    save_file(features.state_dict(), options.out / CLASSIFIER)
    print(f"all four right on {accuracy:.1%} of new pictures")


def train(seed: int, steps: int) -> tuple[Features, float]:
    """The features, and the share of new pictures of which the classifier says everything right."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    scenes = all_scenes()
    features = Features()
    heads = nn.ModuleDict({name: nn.Linear(WIDTH, len(kinds)) for name, kinds in HEADS.items()})
    parameters = [*features.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    for step in range(steps):
        pictures, labels = _sample(scenes, rng)
        found = features(pictures)
        losses = [nn.functional.cross_entropy(heads[name](found), labels[name]) for name in HEADS]
        loss = sum(losses[1:], losses[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    features.eval()
    right = []
    with torch.no_grad():
        for _ in range(16):
            pictures, labels = _sample(scenes, rng)
            found = features(pictures)
            each = [heads[name](found).argmax(1) == labels[name] for name in HEADS]
            right.append(torch.stack(each).all(0).float().mean().item())
    return features, sum(right) / len(right)


def _sample(
    scenes: list[Scene], rng: np.random.Generator
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    chosen = [scenes[i] for i in rng.integers(0, len(scenes), BATCH)]
    # Noise, so that it does not hang on what only a drawn picture has.
    noisy = draw(chosen, rng) + rng.normal(0, 0.05, (BATCH, 1, 1, 1))
    pictures = torch.from_numpy((noisy.clip(0, 1) * 255).round().astype(np.uint8)).movedim(-1, 1)
    labels = {
        "count": [scene.count - 1 for scene in chosen],
        "colour": [HEADS["colour"].index(scene.colour) for scene in chosen],
        "shape": [SHAPES.index(scene.shape) for scene in chosen],
        "background": [HEADS["background"].index(scene.background) for scene in chosen],
    }
    return pictures, {name: torch.tensor(values) for name, values in labels.items()}


if __name__ == "__main__":
    main()
