"""Models of their real size, on the meta device: nothing is loaded and nothing computed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Subject:
    """A model of its real size, and the inputs of one evaluation."""

    label: str
    path: str
    config: dict[str, Any]
    x: tuple[int, ...]  # without the batch
    context: tuple[int, int]
    inputs: Mapping[str, tuple[int, ...]]  # others, without the batch
    kind: str  # the class in ComfyUI's supported_models, which knows what activations take
    beside: float  # GB of its text encoders and of its autoencoder, as people have them


SDXL = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "context_dim": 2048,
    "num_head_channels": 64,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "legacy": False,
}
FLUX = {
    **{"in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096},
    **{"hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19},
    **{"depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2},
    **{"qkv_bias": True, "guidance_embed": True, "txt_ids_dims": []},
}
WAN = {
    **{"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40},
    **{"text_dim": 4096, "in_dim": 16, "out_dim": 16},
}
SD35 = {
    **{"input_size": None, "patch_size": 2, "in_channels": 16, "depth": 38, "qk_norm": "rms"},
    **{"adm_in_channels": 2048, "context_size": 4096, "pos_embed_max_size": 192},
    **{"num_patches": 36864, "x_block_self_attn_layers": []},
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 4096, "out_features": 2432},
    },
}
HUNYUAN = {
    **{"in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096},
    **{"hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 20},
    **{"depth_single_blocks": 40, "axes_dim": [16, 56, 56], "theta": 256},
    **{"patch_size": [1, 2, 2], "qkv_bias": True, "guidance_embed": True},
    **{
        "meanflow": False,
        "meanflow_sum": False,
        "byt5": False,
        "use_cond_type_embedding": False,
        "vision_in_dim": None,
    },
}
SUBJECTS = (
    Subject(
        "SDXL, 1024x1024",
        "modules.diffusionmodules.openaimodel:UNetModel",
        *(SDXL, (4, 128, 128), (77, 2048), {"y": (2816,)}, "SDXL", 1.8),
    ),
    Subject(
        "Flux.1, 1024x1024",
        "flux.model:Flux",
        *(FLUX, (16, 128, 128), (256, 4096), {"y": (768,), "guidance": ()}, "Flux", 10.2),
    ),
    Subject(
        "Wan 2.1 14B, 832x480, 81 frames",
        "wan.model:WanModel",
        *(WAN, (16, 21, 60, 104), (512, 4096), {}, "WAN21_T2V", 11.7),
    ),
    Subject(
        "SD 3.5 large, 1024x1024",
        "modules.diffusionmodules.mmdit:OpenAISignatureMMDITWrapper",
        *(SD35, (16, 128, 128), (154, 4096), {"y": (2048,)}, "SD3", 11.6),
    ),
    Subject(
        "Qwen-Image, 1328x1328",
        "qwen_image.model:QwenImageTransformer2DModel",
        *({}, (16, 1, 166, 166), (128, 3584), {}, "QwenImage", 16.8),
    ),
    Subject(
        "HunyuanVideo, 848x480, 73 frames",
        "hunyuan_video.model:HunyuanVideo",
        *(HUNYUAN, (16, 19, 60, 106), (256, 4096), {"y": (768,), "guidance": ()}),
        *("HunyuanVideo", 16.7),
    ),
)


class Built:
    """A subject with half-precision weights and inputs, on the meta device.

    ComfyUI has to be on the search path, and its command line to be read.

    Attributes:
        trunk: of `model`.
        args: inputs of an evaluation.
        kwargs: the others.
        costs: of each unit, as GPUs have them.
    """

    def __init__(self, subject: Subject, batch: int) -> None:
        import comfy.ops
        import torch

        from asyncdiff_core.algorithm.trunk import Trunk
        from asyncdiff_core.comfyui.model.layouts import entry_of, layout_of
        from asyncdiff_core.planning.costs import measure_costs

        module, _, name = subject.path.partition(":")
        self.half: dict[str, Any] = {"dtype": torch.float16, "device": torch.device("meta")}
        cls = getattr(importlib.import_module(f"comfy.ldm.{module}"), name)
        how = {**self.half, "operations": comfy.ops.disable_weight_init}
        x = torch.empty(batch, *subject.x, **self.half)
        inputs = {k: torch.empty(batch, *v, **self.half) for k, v in subject.inputs.items()}
        inputs["context"] = torch.empty(batch, *subject.context, **self.half)
        self.args = x, torch.empty(batch, device="meta")
        self.kwargs = {**inputs, "transformer_options": {}}
        self.model = cls(**subject.config, **how)
        self.trunk = Trunk.of(self.model, layout_of(self.model))
        self.entry = entry_of(self.model)
        measured = cls(**subject.config, **how)
        self.costs = measure_costs(
            *(measured, Trunk.of(measured, layout_of(measured)), self.args, self.kwargs),
            entry=self.entry,
            device_type="cuda",
        )
