"""The demonstration's own model: coloured shapes on a background, and prompts that say which.

Everything is made here, from nothing: the pictures (`scenes`), the codec between pictures and
latents (`codec`), the text-to-image transformer (`train`), and the rules that say whether a picture
shows what its prompt asked for (`checker`).

The folder is a node pack as well (`nodes`), which the demonstration and the tests link into their
ComfyUI. ComfyUI is imported inside the entry point only, so that all the rest works without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import ShapesExtension

PACK = Path(__file__).parent
WEIGHTS = PACK / "weights"
DIFFUSION_MODEL, CODEC = "shapes-wan.safetensors", "shapes-codec.safetensors"
CLASSIFIER = "shapes-classifier.safetensors"
DIFFUSION_MODELS = WEIGHTS / "diffusion_models"  # apart: ComfyUI lists the whole folder


async def comfy_entrypoint() -> ShapesExtension:
    """What ComfyUI calls to get the nodes."""
    from .nodes import ShapesExtension

    return ShapesExtension()
