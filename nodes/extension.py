"""What the pack gives to ComfyUI: its nodes, and its routes."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import ComfyExtension, io
from server import PromptServer

import nodes as comfy_nodes

from ..asyncdiff_core.comfyui.model.gguf_files import note_calls
from . import routes  # noqa: F401 - registers the routes
from .loaders import AsyncDiffCheckpointLoader, AsyncDiffDiffusionModelLoader, AsyncDiffParallelize
from .motion import AsyncDiffMotionLora, AsyncDiffMotionModule
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
            AsyncDiffMotionLora,
            AsyncDiffSchedule,
            AsyncDiffKSampler,
            AsyncDiffKSamplerAdvanced,
            AsyncDiffTimeline,
        ]


def _before_prompt(prompt: dict[str, Any]) -> dict[str, Any]:
    """All packs are there then, and none of their nodes has run."""
    note_calls(comfy_nodes.NODE_CLASS_MAPPINGS.values())
    return prompt


PromptServer.instance.add_on_prompt_handler(_before_prompt)
