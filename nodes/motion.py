"""AnimateDiff on SD 1.5 and SDXL."""

from __future__ import annotations

import os

import folder_paths
from comfy_api.latest import io

from ..asyncdiff_core.comfyui.distribute import animate, with_motion_lora
from .loaders import CATEGORY

# As AnimateDiff-Evolved has them.
FOLDER, LORA_FOLDER = "animatediff_models", "animatediff_motion_lora"

for folder in (FOLDER, LORA_FOLDER):
    folder_paths.add_model_folder_path(folder, os.path.join(folder_paths.models_dir, folder))
    folder_paths.folder_names_and_paths[folder][1].update(folder_paths.supported_pt_extensions)


class AsyncDiffMotionModule(io.ComfyNode):
    """Put AnimateDiff's motion modules into an SD 1.5 or an SDXL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AsyncDiffMotionModule",
            display_name="AnimateDiff Motion Module (AsyncDiff)",
            category=CATEGORY,
            description="Puts AnimateDiff's motion modules into an SD 1.5 or SDXL, spread or not. "
            "A batch of latents becomes the frames of one video.",
            search_aliases=["animatediff", "motion module", "video sd15", "animate diff"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="An SD 1.5 or SDXL, from a loader or Parallelize Model."
                ),
                io.Combo.Input(
                    "motion_model",
                    options=folder_paths.get_filename_list(FOLDER),
                    tooltip="A motion module of AnimateDiff v1, v2 or v3 for SD 1.5, or one for "
                    "SDXL, in the folder models/animatediff_models.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: io.Model.Type, motion_model: str) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise(FOLDER, motion_model)
        return io.NodeOutput(animate(model, path))


class AsyncDiffMotionLora(io.ComfyNode):
    """Put a motion LoRA of AnimateDiff on motion modules."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AsyncDiffMotionLora",
            display_name="AnimateDiff Motion LoRA (AsyncDiff)",
            category=CATEGORY,
            description="Puts a motion LoRA (pan, zoom, roll) on the motion modules of a MODEL, "
            "spread or not. Several can stand one behind the other.",
            search_aliases=["animatediff", "motion lora", "camera motion"],
            inputs=[
                io.Model.Input("model", tooltip="From AnimateDiff Motion Module (AsyncDiff)."),
                io.Combo.Input(
                    "motion_lora",
                    options=folder_paths.get_filename_list(LORA_FOLDER),
                    tooltip="A motion LoRA of AnimateDiff, in the folder "
                    "models/animatediff_motion_lora.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How much of it: 0 is nothing, 1 is what it was trained for.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: io.Model.Type, motion_lora: str, strength: float) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise(LORA_FOLDER, motion_lora)
        return io.NodeOutput(with_motion_lora(model, path, strength))
