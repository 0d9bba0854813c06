"""Nodes that show what the workers did."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context

from ..asyncdiff_core.comfyui.run.history import last_runs, runs_of
from ..asyncdiff_core.errors import AsyncDiffError
from ..asyncdiff_core.reports.timeline import draw_timeline
from .loaders import CATEGORY


class AsyncDiffTimeline(io.ComfyNode):
    """The timeline of the last run as a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AsyncDiffTimeline",
            display_name="Timeline (AsyncDiff)",
            category=CATEGORY,
            description="Draws what every worker did in the last sampling run: a row per worker, a "
            "bar per evaluation.",
            search_aliases=["profile", "gantt", "async timeline", "worker report"],
            inputs=[
                io.Latent.Input(
                    "samples",
                    tooltip="The LATENT of the sampler whose run is drawn. The run that ended last "
                    "before this node is taken.",
                ),
                io.Int.Input(
                    "width",
                    default=1200,
                    min=640,
                    max=8192,
                    tooltip="The width of the picture in pixels. Its height follows from the "
                    "number of workers.",
                ),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, samples: io.Latent.Type, width: int) -> io.NodeOutput:
        # `samples` is not read: it makes this node wait for its sampler.
        context = get_executing_context()
        runs = (runs_of(context.prompt_id) if context else []) or last_runs()
        if not runs:
            raise AsyncDiffError(
                "There is no timeline: since ComfyUI started, no model was sampled on several "
                "devices. Put a node of the category AsyncDiff between loader and sampler."
            )
        picture = np.asarray(draw_timeline(runs[-1], width), dtype=np.float32) / 255.0
        return io.NodeOutput(torch.from_numpy(picture)[None])  # [1, height, width, 3]
