"""What the pack gives to ComfyUI: its nodes, and its routes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import routes  # noqa: F401 - registers the routes
from .loaders import AsyncDiffCheckpointLoader, AsyncDiffDiffusionModelLoader, AsyncDiffParallelize
from .motion import AsyncDiffMotionModule
from .reports import AsyncDiffTimeline
from .sampling import AsyncDiffKSampler, AsyncDiffKSamplerAdvanced, AsyncDiffSchedule


class AsyncDiffExtension(ComfyExtension):
    """The pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            AsyncDiffCheckpointLoader,
            AsyncDiffDiffusionModelLoader,
            AsyncDiffParallelize,
            AsyncDiffMotionModule,
            AsyncDiffSchedule,
            AsyncDiffKSampler,
            AsyncDiffKSamplerAdvanced,
            AsyncDiffTimeline,
        ]
