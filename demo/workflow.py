"""The demonstration's workflow, in ComfyUI's API format."""

from __future__ import annotations

from collections.abc import Sequence

from demo.shapes import DIFFUSION_MODEL
from harness.graphs import Workflow, node, sampler

SHIFT = 3.0  # of the sigmas, as in the model's training


def shapes_workflow(prompts: Sequence[str], **sampling: int | float | str) -> Workflow:
    """A picture of each prompt, as one batch, with the demonstration's own model."""
    sampling = {"scheduler": "simple", "cfg": 4.0, **sampling}
    return {
        "model": node("UNETLoader", unet_name=DIFFUSION_MODEL, weight_dtype="default"),
        "shifted": node("ModelSamplingSD3", model=["model", 0], shift=SHIFT),
        "positive": node("ShapesPrompt", text="\n".join(prompts)),
        "negative": node("ShapesPrompt", text=""),
        "empty": node("ShapesLatent", batch_size=len(prompts)),
        "sampler": sampler(model=["shifted", 0], **sampling),
        "latent": node("SaveLatent", samples=["sampler", 0], filename_prefix="latents/shapes"),
        "decode": node("ShapesDecode", samples=["sampler", 0]),
        "pictures": node("SaveImage", images=["decode", 0], filename_prefix="shapes"),
    }
