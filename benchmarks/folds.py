"""What folded stages of a UNet do to pictures, beside contiguous ones.

    python3 dev.py python -m benchmarks.folds [--train 700] [--steps 30]

No UNet with weights of its own comes with this repository. So a small one (ComfyUI's UNetModel,
with the demonstration's prompts as its context) learns the demonstration's pictures for some
minutes, and then samples the prompts that it was not trained with: as it is, and by the oracle
under both ways to cut. The figures are of this model and this seed.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import os
import sys
from pathlib import Path
from typing import Any

BATCH, CHANNELS = 32, 32
SETTINGS = list(itertools.product((2, 3), (1, 3, 5), (False, True)))  # stages, warm-up, predicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    path = os.environ.get("COMFYUI_PATH")
    parser.add_argument("--comfyui", type=Path, default=path, required=path is None)
    parser.add_argument("--train", type=int, default=700, help="steps of the training")
    parser.add_argument("--steps", type=int, default=30, help="steps of the sampling")
    parser.add_argument("--prompts", type=int, default=32, help="held-out prompts that are sampled")
    options = parser.parse_args()
    sys.path.insert(0, str(options.comfyui.resolve()))
    sys.argv[1:] = ["--cpu", "--use-pytorch-cross-attention"]
    Comparison(options.train, options.prompts).print_table(options.steps)


class Comparison:
    """A trained UNet, and what becomes of its pictures."""

    def __init__(self, num_training_steps: int, num_prompts: int) -> None:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.latent_formats
        import comfy.model_management
        import comfy.ops
        import torch
        from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

        from demo.shapes import CODEC, text
        from demo.shapes.codec import CHANNELS as LATENT_CHANNELS
        from demo.shapes.codec import Codec
        from demo.shapes.scenes import split

        comfy.model_management.in_training = True  # plain torch operations, which have gradients
        self.format = comfy.latent_formats.Wan21()
        self.codec = Codec.load(Path(__file__).parents[1] / "demo/shapes/weights" / CODEC)
        self.scenes, held_out = split()
        self.held_out = held_out[:num_prompts]
        torch.manual_seed(0)
        self.model = UNetModel(
            image_size=32,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            model_channels=CHANNELS,
            num_res_blocks=[2, 2, 2],
            channel_mult=(1, 2, 4),
            transformer_depth=[0, 0, 1, 1, 2, 2],
            transformer_depth_output=[0, 0, 0, 1, 1, 1, 2, 2, 2],
            transformer_depth_middle=2,
            num_heads=4,
            context_dim=text.WIDTH,
            use_spatial_transformer=True,
            operations=comfy.ops.disable_weight_init,
            dtype=torch.float32,
        )
        kinds: tuple[Any, ...] = (torch.nn.Linear, torch.nn.Conv2d)
        kinds += (torch.nn.GroupNorm, torch.nn.LayerNorm)
        for module in self.model.modules():
            for kind in kinds:
                if isinstance(module, kind):
                    kind.reset_parameters(module)  # ComfyUI's own classes leave that out
        self._train(num_training_steps)

    def _train(self, num_steps: int) -> None:
        """Flow matching, as demo/shapes/train.py does it."""
        import numpy as np
        import torch

        from demo.shapes import text
        from demo.shapes.train import draw_batch, flow_matching_loss, learning_rate

        prompts = torch.cat([text.encode(scene.prompt) for scene in self.scenes])
        optimizer = torch.optim.AdamW(self.model.parameters(), 2e-3, (0.9, 0.98), weight_decay=0)
        for step in range(num_steps):
            rng = np.random.default_rng([1, step])
            torch.manual_seed(step)
            pictures, context = draw_batch(rng, self.scenes, prompts, BATCH)
            latents = self.format.process_in(self.codec.encode(pictures))[:, :, 0]
            loss = flow_matching_loss(self.model, latents, context)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * learning_rate(step, num_steps)
            optimizer.step()
            optimizer.zero_grad()
            if step % 50 == 0:
                print(f"training step {step}: loss {loss.item():.3f}", file=sys.stderr, flush=True)
        self.model.requires_grad_(False)

    def print_table(self, num_steps: int) -> None:
        import torch

        from asyncdiff_core.algorithm.evaluator import Forecast, Inputs
        from asyncdiff_core.algorithm.oracle import Oracle
        from asyncdiff_core.algorithm.prediction import Latent
        from asyncdiff_core.algorithm.schedule import PREDICTED_FOLD, AsyncSchedule
        from asyncdiff_core.algorithm.stage import StagedModel
        from asyncdiff_core.algorithm.trunk import Trunk
        from asyncdiff_core.comfyui.model.layouts import layout_of
        from asyncdiff_core.planning.costs import measure_costs
        from asyncdiff_core.planning.cuts import fold, partition, slowest
        from demo.shapes.train import MULTIPLIER, shifted

        args = torch.zeros(2, *self._shape), torch.ones(2)
        kwargs = {"context": torch.zeros(2, 4, 32)}
        on_meta = copy.deepcopy(self.model).to("meta")
        trunk = Trunk.of(on_meta, layout_of(on_meta))
        how = {"entry": "forward", "device_type": "cuda"}
        costs = measure_costs(on_meta, trunk, args, kwargs, **how)
        reference, shown = self._sample(self.model, num_steps)
        print(
            "| stages | cut | latents | warm-up | ideal | PSNR of a latent (dB), median (worst) "
            "| prompts shown |"
        )
        print("|---|---|---|---|---|---|---|")
        print(f"| 1 | | | | 1.00x | | {shown:.0%} |")
        staged = StagedModel(self.model, Trunk.of(self.model, layout_of(self.model)))
        # As euler makes them; a draft is the same at times as at sigmas, which are a multiple.
        sigmas = shifted(torch.linspace(1, 0, num_steps + 1))[:-1]
        times = (sigmas.double() * MULTIPLIER).float().tolist()

        def evaluate(oracle: Oracle, x: Any, t: Any, context: Any) -> Any:
            now = float(t[0])

            def at(time: float, latent: Latent | None) -> Inputs:
                return (x if latent is None else latent[0], torch.full_like(t, time), context), {}

            coming = tuple(times[times.index(now) + 1 :])
            forecast = Forecast(now, coming, at, (x,))
            return oracle.evaluate("lane", (x, t, context), {}, forecast)

        for number, warm_up, predicts in SETTINGS:
            speeds = [1.0] * number
            contiguous = tuple((units,) for units in partition(costs, speeds))
            folded = fold(costs, speeds, trunk.skips, predicts=predicts)
            assert folded is not None
            for name, stages in ("fold", folded), ("chain", contiguous):
                if name == "fold" and predicts and number != PREDICTED_FOLD:
                    continue  # nothing is predicted
                oracle = Oracle(staged, stages)
                oracle.begin_run(AsyncSchedule(warm_up, prediction=predicts))
                latents, shown = self._sample(functools.partial(evaluate, oracle), num_steps)
                oracle.end_run()
                share = slowest(stages, costs, speeds, predicts=predicts) / sum(costs)
                ideal = num_steps / (warm_up + (num_steps - warm_up) * share)
                psnr, of_latents = psnr_of(latents, reference), "draft" if predicts else "stale"
                print(
                    f"| {number} | {name} | {of_latents} | {warm_up} | {ideal:.2f}x | {psnr} "
                    f"| {shown:.0%} |",
                    flush=True,
                )
        whole = (((0, len(trunk.units)),),)
        for number, warm_up in itertools.product((2, 3), (1, 3, 5)):
            oracle = Oracle(staged, whole, number)
            oracle.begin_run(AsyncSchedule(warm_up, prediction=True))
            latents, shown = self._sample(functools.partial(evaluate, oracle), num_steps)
            oracle.end_run()
            ideal = num_steps / (warm_up + -(-(num_steps - warm_up) // number))
            psnr = psnr_of(latents, reference)
            print(
                f"| {number} in time | none | draft | {warm_up} | {ideal:.2f}x | {psnr} "
                f"| {shown:.0%} |",
                flush=True,
            )
        for fewer in (19, 17, 15, 12):
            latents, shown = self._sample(self.model, fewer)
            psnr, ideal = psnr_of(latents, reference), num_steps / fewer
            print(f"| 1 | {fewer} steps | | | {ideal:.2f}x | {psnr} | {shown:.0%} |", flush=True)

    @property
    def _shape(self) -> tuple[int, int, int]:
        from demo.shapes.codec import CHANNELS as LATENT_CHANNELS
        from demo.shapes.codec import PATCH
        from demo.shapes.scenes import SIZE

        return LATENT_CHANNELS, SIZE // PATCH, SIZE // PATCH

    def _sample(self, evaluate: Any, num_steps: int) -> tuple[Any, float]:
        """Latents of all held-out prompts by Euler and CFG, and the share of right pictures."""
        import torch

        from demo.shapes import checker, text
        from demo.shapes.train import euler

        count = len(self.held_out)
        prompts = [text.encode(scene.prompt) for scene in self.held_out]
        context = torch.cat([*prompts, *[text.encode("")] * count])
        x = torch.randn(count, *self._shape, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            x = euler(evaluate, x, context, num_steps)
            pictures = self.codec.decode(self.format.process_out(x.unsqueeze(2)))
        pairs = zip(pictures.numpy(), self.held_out, strict=True)
        shown = [checker.read(picture).shows(scene) for picture, scene in pairs]
        return x, sum(shown) / count


def psnr_of(ours: Any, reference: Any) -> str:
    """Peak signal-to-noise ratio of a picture in dB; the peak is the range of the reference."""
    errors = (ours - reference).square().flatten(1).mean(1).clamp(min=1e-30)
    span = (reference.max() - reference.min()).item()
    each = 10 * (span**2 / errors).log10()
    return f"{each.median().item():.1f} ({each.min().item():.1f})"


if __name__ == "__main__":
    main()
