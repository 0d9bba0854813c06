"""Train the demonstration's model from scratch: ComfyUI's own Wan transformer, a few million wide.

    python3 dev.py python -m demo.shapes.train --out DIR [--device cuda]

It learns to turn noise into the pictures of `scenes`, with the flow-matching objective that
ComfyUI's sampler expects of a Wan model: at x = (1 - sigma) * latent + sigma * noise it predicts
noise - latent. The same seed gives the same pictures, noise and initial weights. State is written
to DIR every few minutes, and the same command goes on from it. At the end DIR holds
shapes-wan.safetensors, which Load Diffusion Model reads, and shapes-codec.safetensors.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from . import CODEC, DIFFUSION_MODEL, checker, text
from .codec import CHANNELS, PATCH, Codec
from .scenes import SIZE, Scene, draw, split

# What differs from the real model's shape. ComfyUI reads the numbers that it cannot see in the
# weights from the file's metadata.
DIM, FEED_FORWARD, HEADS, BLOCKS = 128, 512, 2, 12
METADATA = {
    "config": json.dumps({"transformer": {"num_heads": HEADS, "text_dim": text.WIDTH}}),
    "license": "Apache-2.0",
}

BATCH = 64
STEPS = 3000
MATRIX_LR, OTHER_LR = 8e-3, 3e-3
WARM_UP, DECAY = 100, 0.5  # steps; share of the steps, at the end, in which the rate falls to zero
EMA_DECAY = 0.998
NO_PROMPT = 0.1  # share of the pictures that are learnt without their prompt, for CFG
SHIFT = 3.0  # favours high noise, where it is decided what will be where
CFG = 4.0
MULTIPLIER = 1000.0  # of sigma, as ComfyUI passes it to the model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    path = os.environ.get("COMFYUI_PATH")
    parser.add_argument("--comfyui", type=Path, default=path, required=path is None)
    parser.add_argument("--out", type=Path, required=True, help="state, log and result")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--prompts", type=int, help="held-out ones for the accuracy (default: all)")
    options = parser.parse_args()
    sys.path.insert(0, str(options.comfyui.resolve()))
    sys.argv[1:] = ["--use-pytorch-cross-attention"]
    sys.argv[1:] += ["--cpu"] if options.device == "cpu" else []
    options.out.mkdir(parents=True, exist_ok=True)
    Training(options).run()


class Training:
    """Everything that changes while it trains."""

    def __init__(self, options: argparse.Namespace) -> None:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.latent_formats
        import comfy.model_management

        comfy.model_management.in_training = True  # plain torch operations, which have gradients
        self.out, self.steps, self.seed = options.out, options.steps, options.seed
        self.device = torch.device(options.device)
        self.scenes, held_out = split()
        self.held_out = held_out[: options.prompts]
        self.format = comfy.latent_formats.Wan21()

        torch.manual_seed(self.seed)
        self.model = build_model().to(self.device)
        self.ema = [p.detach().clone() for p in self.model.parameters()]
        self.optimizers = make_optimizers(self.model)
        self.step = 0
        self.codec = self._fit_codec()
        if self.state_path.exists():
            self._resume()

    @property
    def state_path(self) -> Path:
        return self.out / "state.pt"

    def run(self) -> None:
        saved = time.monotonic()
        with (self.out / "log.jsonl").open("a") as log:
            for step, latents, context in self._batches():
                started = time.monotonic()
                loss = self._train(latents, context)
                if step % 20 == 0 or step == self.steps - 1:
                    line = {"step": step, "loss": loss, "seconds": time.monotonic() - started}
                    if ((step + 1) % 500 == 1 and step) or step == self.steps - 1:
                        line["held_out_accuracy"] = self.accuracy()
                    print(json.dumps(line), file=log, flush=True)
                    print(json.dumps(line), flush=True)
                self.step = step + 1
                if time.monotonic() - saved > 180 or self.step == self.steps:
                    self._save_state()
                    saved = time.monotonic()
        self._export()

    def _fit_codec(self) -> Codec:
        rng = np.random.default_rng(self.seed)
        chosen = rng.integers(0, len(self.scenes), 2000)
        pictures = torch.from_numpy(draw([self.scenes[i] for i in chosen], rng))
        mean, std = (t.flatten() for t in (self.format.latents_mean, self.format.latents_std))
        return Codec.fit(pictures, mean, std / self.format.scale_factor)

    def _batches(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Latents and contexts of every step that is left; a step's own, however it is reached."""
        prompts = torch.cat([text.encode(scene.prompt) for scene in self.scenes])
        for step in range(self.step, self.steps):
            rng = np.random.default_rng([self.seed, 1, step])
            torch.manual_seed(int(rng.integers(2**62)))
            pictures, context = draw_batch(rng, self.scenes, prompts, BATCH)
            latents = self.format.process_in(self.codec.encode(pictures))
            yield step, latents.to(self.device), context.to(self.device)

    def _train(self, latents: torch.Tensor, context: torch.Tensor) -> float:
        loss = flow_matching_loss(self.model, latents, context)
        loss.backward()
        rate = learning_rate(self.step, self.steps)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * rate
            optimizer.step()
            optimizer.zero_grad()
        self._average()
        return loss.item()

    @torch.no_grad()
    def _average(self) -> None:
        keep = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.ema, list(self.model.parameters()), 1 - keep)

    @torch.no_grad()
    def accuracy(self, steps: int = 20) -> float:
        """The share of held-out prompts whose picture shows what they ask for."""
        with self._averaged():
            pictures = self.sample(self.held_out, steps)
        shown = [
            checker.read(picture).shows(scene)
            for picture, scene in zip(pictures.numpy(), self.held_out, strict=True)
        ]
        return sum(shown) / len(shown)

    @torch.no_grad()
    def sample(self, scenes: list[Scene], steps: int) -> torch.Tensor:
        """A picture of each scene, by Euler steps and classifier-free guidance."""
        count = len(scenes)
        contexts = [text.encode(scene.prompt) for scene in scenes] + [text.encode("")] * count
        context = torch.cat(contexts).to(self.device)
        generator = torch.Generator().manual_seed(self.seed)
        shape = (count, CHANNELS, 1, SIZE // PATCH, SIZE // PATCH)
        x = torch.randn(shape, generator=generator).to(self.device)
        x = euler(self.model, x, context, steps)
        return self.codec.decode(self.format.process_out(x.cpu()))

    def _averaged(self) -> Any:
        """A context in which the model has its averaged weights."""
        return _Swapped(list(self.model.parameters()), self.ema)

    def _save_state(self) -> None:
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        temporary = self.state_path.with_suffix(".part")
        torch.save(state, temporary)
        temporary.replace(self.state_path)

    def _resume(self) -> None:
        state = torch.load(self.state_path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.step, self.ema = state["step"], state["ema"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        print(f"going on at step {self.step}", flush=True)

    def _export(self) -> None:
        with self._averaged():
            weights = {k: v.to("cpu", torch.float16) for k, v in self.model.state_dict().items()}
        save_file(weights, self.out / DIFFUSION_MODEL, METADATA)
        self.codec.save(self.out / CODEC)


class _Swapped:
    def __init__(self, parameters: list[Any], others: list[torch.Tensor]) -> None:
        self._parameters, self._others = parameters, others

    def __enter__(self) -> None:
        for parameter, other in zip(self._parameters, self._others, strict=True):
            parameter.data, other.data = other.data, parameter.data

    def __exit__(self, *_: object) -> None:
        self.__enter__()


def build_model() -> Any:
    """ComfyUI's Wan model, with weights from the current seed."""
    from comfy.ldm.wan.model import WanModel

    model = WanModel(
        dim=DIM,
        ffn_dim=FEED_FORWARD,
        num_heads=HEADS,
        num_layers=BLOCKS,
        in_dim=CHANNELS,
        out_dim=CHANNELS,
        text_dim=text.WIDTH,
        operations=torch.nn,
        dtype=torch.float32,
    )
    for name, parameter in model.named_parameters():
        if name.endswith("modulation"):
            torch.nn.init.normal_(parameter, std=DIM**-0.5)
        elif name.endswith("bias") or name == "head.head.weight":
            torch.nn.init.zeros_(parameter)
        elif parameter.ndim >= 2:
            torch.nn.init.xavier_uniform_(parameter.view(len(parameter), -1))
    torch.nn.init.normal_(model.text_embedding[0].weight, std=0.5)  # its inputs are mostly zero
    return model


def draw_batch(
    rng: np.random.Generator, scenes: Sequence[Scene], prompts: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of `size` random scenes, and their contexts, some of which are of no prompt.

    Args:
        rng: draws scenes, their noise, and which have no prompt.
        scenes: those to draw from.
        prompts: [len(scenes), NUM_TOKENS, WIDTH], the context of each scene.
        size: of the batch.
    """
    chosen = rng.integers(0, len(scenes), size)
    pictures = torch.from_numpy(draw([scenes[i] for i in chosen], rng))
    context = prompts[torch.from_numpy(chosen)]
    context[torch.from_numpy(rng.random(size) < NO_PROMPT)] = text.encode("")
    return pictures, context


def flow_matching_loss(
    model: torch.nn.Module, latents: torch.Tensor, context: torch.Tensor
) -> torch.Tensor:
    """How far `model` is from predicting noise - latent, somewhere between the two."""
    size, device = len(latents), latents.device
    # Every part of the range of sigma once in each batch.
    sigma = shifted((torch.arange(size) + torch.rand(size)) / size).to(device)
    noise = torch.randn(latents.shape).to(device)
    weight = sigma.view(-1, *[1] * (latents.ndim - 1))
    noisy = (1 - weight) * latents + weight * noise
    with torch.autocast(device.type, torch.bfloat16):
        predicted = model(noisy, sigma * MULTIPLIER, context)
    return (predicted.float() - (noise - latents)).square().mean()


def euler(
    model: Callable[..., torch.Tensor], x: torch.Tensor, context: torch.Tensor, steps: int
) -> torch.Tensor:
    """Latents from the noise `x`, by Euler steps and classifier-free guidance.

    Args:
        model: predicts noise - latent, of latents, times and contexts.
        x: the noise.
        context: [2 * len(x), ..], that of every prompt, and then as often that of none.
        steps: how many.
    """
    sigmas = shifted(torch.linspace(1, 0, steps + 1))
    for sigma, following in itertools.pairwise(sigmas):
        time_ = torch.full((2 * len(x),), sigma.item() * MULTIPLIER, device=x.device)
        cond, uncond = model(torch.cat([x, x]), time_, context).chunk(2)
        x = x + (following - sigma).to(x) * (uncond + CFG * (cond - uncond))
    return x


def shifted(uniform: torch.Tensor) -> torch.Tensor:
    """Sigmas for numbers that are spread evenly between 0 and 1."""
    return SHIFT * uniform / (1 + (SHIFT - 1) * uniform)


def make_optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for everything else."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = name.startswith("blocks.") and parameter.ndim == 2
        (matrices if is_matrix else others).append(parameter)
    muon = torch.optim.Muon(matrices, MATRIX_LR, adjust_lr_fn="match_rms_adamw", weight_decay=0.01)
    adamw = torch.optim.AdamW(others, OTHER_LR, betas=(0.9, 0.98), weight_decay=0.0)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return [muon, adamw]


def learning_rate(step: int, steps: int) -> float:
    """As a share of the peak: up, level, and down to zero."""
    left = (steps - step) / (DECAY * steps)
    return min(1.0, (step + 1) / WARM_UP, left)


if __name__ == "__main__":
    main()
