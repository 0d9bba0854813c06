"""AnimateDiff on SD 1.5."""

from __future__ import annotations

import os

import folder_paths
from comfy_api.latest import io

from ..asyncdiff_core.comfyui.distribute import animate
from .loaders import CATEGORY

FOLDER = "animatediff_models"  # as AnimateDiff-Evolved has it

folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
folder_paths.folder_names_and_paths[FOLDER][1].update(folder_paths.supported_pt_extensions)


class AsyncDiffMotionModule(io.ComfyNode):
    """Put AnimateDiff's motion modules into an SD 1.5."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AsyncDiffMotionModule",
            display_name="AnimateDiff Motion Module (AsyncDiff)",
            category=CATEGORY,
            description="Puts AnimateDiff's motion modules into an SD 1.5, spread or not. A batch "
            "of latents becomes the frames of one video.",
            search_aliases=["animatediff", "motion module", "video sd15", "animate diff"],
            inputs=[
                io.Model.Input("model", tooltip="An SD 1.5, from a loader or Parallelize Model."),
                io.Combo.Input(
                    "motion_model",
                    options=folder_paths.get_filename_list(FOLDER),
                    tooltip="A motion module of AnimateDiff v1, v2 or v3 for SD 1.5, in the folder "
                    "models/animatediff_models.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: io.Model.Type, motion_model: str) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise(FOLDER, motion_model)
        return io.NodeOutput(animate(model, path))
