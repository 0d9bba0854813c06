"""AsyncDiff for ComfyUI: one diffusion model on several devices, by asynchronous denoising.

ComfyUI is imported inside the entry point only, so that tests and workers can import this package
without it.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():  # noqa: ANN201 - ComfyUI's class, which is not imported here
    """What ComfyUI calls to get the nodes."""
    from .nodes.extension import AsyncDiffExtension

    return AsyncDiffExtension()
