"""Nodes around the demonstration's model, in place of a text encoder and a VAE."""

from __future__ import annotations

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io

from . import CODEC, DIFFUSION_MODELS, WEIGHTS
from .codec import CHANNELS, PATCH, Codec
from .scenes import SIZE
from .text import encode

CATEGORY = "AsyncDiff/demo"


class ShapesPrompt(io.ComfyNode):
    """Prompts to a CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShapesPrompt",
            display_name="Shapes Prompt",
            category=CATEGORY,
            description="Prompts for the demonstration's model, such as 'two red circles on blue'.",
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    tooltip="One prompt per line, each for one picture of the batch. Empty for the "
                    "negative prompt.",
                ),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        return io.NodeOutput([[encode_lines(text), {}]])


def encode_lines(text: str) -> torch.Tensor:
    """Context of every line that is not empty; of no prompt, if all are.

    Raises:
        ValueError: names the line that is no prompt, and says what is allowed.
    """
    contexts = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                contexts.append(encode(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
    return torch.cat(contexts) if contexts else encode("")


class ShapesLatent(io.ComfyNode):
    """An empty LATENT of the one size that the model knows."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShapesLatent",
            display_name="Empty Shapes Latent",
            category=CATEGORY,
            description=f"Empty latents for pictures of {SIZE}x{SIZE} pixels.",
            inputs=[
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=4096,
                    tooltip="The number of pictures; as many as the prompt has lines.",
                ),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, batch_size: int) -> io.NodeOutput:
        shape = (batch_size, CHANNELS, 1, SIZE // PATCH, SIZE // PATCH)
        device = comfy.model_management.intermediate_device()
        return io.NodeOutput({"samples": torch.zeros(shape, device=device)})


class ShapesDecode(io.ComfyNode):
    """Latents to pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShapesDecode",
            display_name="Shapes Decode",
            category=CATEGORY,
            description="Turns latents of the demonstration's model into pictures.",
            inputs=[io.Latent.Input("samples", tooltip="The latents to decode.")],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, samples: io.Latent.Type) -> io.NodeOutput:
        codec = Codec.load(WEIGHTS / CODEC)
        return io.NodeOutput(codec.decode(samples["samples"].float().cpu()))


class ShapesExtension(ComfyExtension):
    """The pack."""

    async def on_load(self) -> None:
        """Have ComfyUI's loaders list the model where it lies."""
        folder_paths.add_model_folder_path("diffusion_models", str(DIFFUSION_MODELS))

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [ShapesPrompt, ShapesLatent, ShapesDecode]
