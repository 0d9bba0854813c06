"""Run in a process of its own: small checkpoints of many families, in the stock format.

    python stock_format.py COMFYUI MODELS

Writes MODELS/diffusion_models/stock-<name>.safetensors with the names, and where detection asks for
them the widths, of the published files, and MODELS/loras/stock-<name>.safetensors, which changes
almost all linear layers. The weights are those of architectures.py. Prints one JSON object: per
name the class that has the file, and the inputs of one sampling (see test_stock_format.py).

Left out is what detection gives its full size whatever the file holds: Chroma, Qwen-Image,
Lumina 2, Z-Image, AuraFlow, Cosmos, Anima, HiDream, OmniGen2, Mochi, ACE-Step, Stable Cascade.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# Layers that ComfyUI's own process runs, where a LoRA of them is refused: those of LTX-2.
IN_THE_HOST = ("caption_projection", "embeddings_connector")


def families() -> dict[str, dict[str, Any]]:
    """Per name: label, path and config as in architectures.py; and what a sampler needs.

    `latent` are the shapes of its parts, `text` the width of the context, `pooled` that of the
    pooled output, or 0 for none; `masked` adds an attention mask. `metadata` is what the
    file says of its own configuration.
    """
    from architectures import FLUX, HUNYUAN, LTX, LTX_AV, UNET, WAN

    unet = {**UNET, "model_channels": 320, "num_heads": -1, "num_head_channels": 64}
    unet |= {"channel_mult": [1, 1], "use_linear_in_transformer": True}
    wide = {"hidden_size": 128, "num_heads": 1, "mlp_ratio": 4.0, "depth": 2}
    wide |= {"depth_single_blocks": 2, "vec_in_dim": 768}
    flux = {**FLUX, **wide, "in_channels": 16, "out_channels": 16, "axes_dim": [16, 56, 56]}
    ltx = {**LTX, "in_channels": 128, "num_layers": 4}
    ltx_av = {**LTX_AV, "in_channels": 128, "num_layers": 4}
    vace = {**WAN, "in_dim": 16, "out_dim": 16, "num_layers": 4, "vace_layers": 2}
    vace |= {"vace_in_dim": 96, "freq_dim": 256}
    video, picture, wide_picture = [1, 16, 2, 8, 8], [1, 16, 16, 16], [1, 128, 6, 6]
    return {
        "sd2": {
            "label": "SD 1.x, SD 2.x",
            "path": "modules.diffusionmodules.openaimodel:UNetModel",
            "config": {
                **{**unet, "context_dim": 1024, "transformer_depth": [0, 1]},
                "transformer_depth_output": [0, 0, 1, 1],
            },
            "latent": [[1, 4, 8, 8]],
            "text": 1024,
            "half": True,
        },
        "vega": {  # the smallest of the SDXL kind that detection knows
            "label": "SDXL, SDXL refiner, SD 1.5 and SDXL inpaint, SD x4 upscaler",
            "path": "modules.diffusionmodules.openaimodel:UNetModel",
            "config": {
                **{**unet, "context_dim": 2048, "channel_mult": [1, 1, 1]},
                "num_res_blocks": [2, 2, 2],
                "transformer_depth": [0, 0, 1, 1, 2, 2],
                "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
                "transformer_depth_middle": -1,
                "num_classes": "sequential",
                "adm_in_channels": 2816,
            },
            "latent": [[1, 4, 8, 8]],
            "text": 2048,
            "pooled": 1280,
            "half": True,
        },
        "flux": {
            "label": "Flux.1, LongCat Image",
            "path": "flux.model:Flux",
            "config": flux,
            "latent": [picture],
            "text": 16,
            "pooled": 768,
        },
        "flux2": {
            "label": "Flux.2",
            "path": "flux.model:Flux",
            "config": {
                **{**flux, "in_channels": 128, "out_channels": 128, "axes_dim": [32, 32, 32, 32]},
                **{"patch_size": 1, "mlp_ratio": 3.0, "qkv_bias": False, "vec_in_dim": None},
                **{"txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True},
                "ops_bias": False,
            },
            "latent": [wide_picture],
            "text": 16,
        },
        "hunyuan-video": {
            "label": "Hunyuan Video",
            "path": "hunyuan_video.model:HunyuanVideo",
            "config": {
                **{**HUNYUAN, **wide, "in_channels": 16, "out_channels": 16},
                "axes_dim": [16, 56, 56],
            },
            "latent": [video],
            "text": 16,
            "pooled": 768,
        },
        "ltx": {
            "label": "LTX-Video",
            "path": "lightricks.model:LTXVModel",
            "config": ltx,
            "metadata": ltx,
            "latent": [[1, 128, 2, 4, 4]],
            "text": 16,
            "masked": True,
        },
        "ltx-av": {
            "label": "LTX-2",
            "path": "lightricks.av_model:LTXAVModel",
            "config": ltx_av,
            "metadata": ltx_av,
            "latent": [[1, 128, 2, 4, 4], [1, 8, 6, 16]],
            "text": 16,
        },
        "vace": {
            "label": "Wan VACE",
            "path": "wan.model:VaceWanModel",
            "config": vace,
            "metadata": vace,
            "latent": [video],
            "text": 16,
        },
        "cogvideox": {
            "label": "CogVideoX",
            "path": "cogvideo.model:CogVideoXTransformer3DModel",
            "config": {
                "num_attention_heads": 1,
                "attention_head_dim": 64,
                "in_channels": 16,
                "out_channels": 16,
                "time_embed_dim": 32,
                "text_embed_dim": 16,
                "num_layers": 4,
                "use_rotary_positional_embeddings": True,
            },
            "latent": [video],
            "text": 16,
        },
        "kandinsky": {
            "label": "Kandinsky 5",
            "path": "kandinsky5.model:Kandinsky5",
            "config": {
                "time_dim": 16,
                "model_dim": 64,
                "ff_dim": 64,
                "num_text_blocks": 1,
                "num_visual_blocks": 4,
            },
            "latent": [video],
            "text": 3584,
            "pooled": 768,
        },
        "lens": {
            "label": "Lens",
            "path": "lens.model:LensTransformer2DModel",
            "config": {
                "in_channels": 128,
                "out_channels": 32,
                "num_layers": 4,
                "num_attention_heads": 1,
                "enc_hidden_dim": 16,
                "selected_layer_index": (0, 1),
            },
            "latent": [wide_picture],
            "text": 32,
        },
    }


def main(comfyui: str, models: str) -> None:
    sys.path.insert(0, comfyui)
    sys.argv[1:] = ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import torch
    from architectures import Architecture, Draw
    from safetensors.torch import save_file

    def lora(weights: dict[str, torch.Tensor], rank: int = 2) -> dict[str, torch.Tensor]:
        """Low-rank changes under the names that every architecture knows."""
        draw, changes = Draw(11), {}
        for key, weight in weights.items():
            if any(part in key for part in IN_THE_HOST):
                continue
            if key.endswith(".weight") and weight.ndim == 2:
                layer, (outputs, inputs) = "diffusion_model." + key[: -len(".weight")], weight.shape
                changes[f"{layer}.lora_up.weight"] = 0.3 * draw(outputs, rank)
                changes[f"{layer}.lora_down.weight"] = draw(rank, inputs) / inputs**0.5
        return changes

    folders = [Path(models) / kind for kind in ("diffusion_models", "loras")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, family in families().items():
        path, config = family.pop("path"), family.pop("config")
        model = Architecture("", path, config, lambda draw: {}).build()
        dtype = torch.float16 if family.pop("half", False) else torch.float32
        weights = {key: value.to(dtype) for key, value in model.state_dict().items()}
        metadata = {"format": "pt"}
        if "metadata" in family:
            metadata["config"] = json.dumps({"transformer": family.pop("metadata")})
        file = f"stock-{name}.safetensors"
        save_file(weights, folders[0] / file, metadata=metadata)
        save_file(lora(weights), folders[1] / file)
        written[name] = {"class": type(model).__name__, **family}
    print(json.dumps(written))


if __name__ == "__main__":
    main(*sys.argv[1:])
