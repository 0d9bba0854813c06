"""AsyncDiff for ComfyUI: one diffusion model on several devices, by asynchronous denoising.

ComfyUI is imported inside the entry point only, so that tests and workers can import this package
without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes.extension import AsyncDiffExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> AsyncDiffExtension:
    """What ComfyUI calls to get the nodes."""
    from .nodes.extension import AsyncDiffExtension

    return AsyncDiffExtension()
