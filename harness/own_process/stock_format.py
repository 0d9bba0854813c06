"""Run in a process of its own: small checkpoints of many families, in the stock format.

    python stock_format.py COMFYUI MODELS [KINDS [NAME ..]]

Writes MODELS/diffusion_models/stock-<name>.safetensors with the names, and where detection asks for
them the widths, of the published files, and MODELS/loras/stock-<name>.safetensors, which changes
almost all linear layers. The weights are those of architectures.py; most layers have 65,536 of them
and more. Beside each file are those in the other formats of formats.py; KINDS is a JSON object that
says which for each name, if not all. With names only these are written.
Prints one JSON object: per name the class that has the file, its formats, and the inputs of one
sampling (see test_stock_format.py); or that this ComfyUI is too old to have the class.

Left out is what takes more than a test should. Detection gives Cosmos, Anima, HiDream, OmniGen2,
Mochi, ACE-Step, Ernie, PixelDiT, PiD, TripoSplat, SeedVR2 and Stable Cascade their full depth
whatever the file holds. The widths of Chroma, Qwen-Image, Mage-Flow, AuraFlow, Lumina 2, Z-Image,
Boogu and Ideogram 4 are fixed, and two blocks of these are a gigabyte or more; PixArt's are less,
but it takes no small picture. HunyuanDiT and ACE-Step 1.5 want what only their text encoders make.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# Layers that ComfyUI's own process runs, where a LoRA of them is refused: of LTX-2, of Anima.
IN_THE_HOST = ("caption_projection", "embeddings_connector", "llm_adapter")


def families() -> dict[str, dict[str, Any]]:
    """Per name: label, path and config as in architectures.py; and what a sampler needs.

    `latent` are the shapes of its parts, `text` the width of the context, `pooled` that of the
    pooled output, or 0 for none; `masked` adds an attention mask. `metadata` is what the
    file says of its own configuration.
    """
    from harness.own_process.architectures import FLUX, HUNYUAN, LTX, LTX_AV, UNET, WAN

    unet = {**UNET, "model_channels": 320, "num_heads": -1, "num_head_channels": 64}
    unet |= {"channel_mult": [1, 1], "use_linear_in_transformer": True}
    wide = {"hidden_size": 256, "num_heads": 2, "mlp_ratio": 4.0, "depth": 2}
    wide |= {"depth_single_blocks": 2, "vec_in_dim": 768}
    flux = {**FLUX, **wide, "in_channels": 16, "out_channels": 16, "axes_dim": [16, 56, 56]}
    heads = {"attention_head_dim": 128, "num_attention_heads": 2, "cross_attention_dim": 256}
    ltx = {**LTX, **heads, "in_channels": 128, "num_layers": 3}
    ltx_av = {**LTX_AV, **heads, "in_channels": 128, "num_layers": 3}
    ltx_av |= {f"audio_{key}": value for key, value in heads.items()}
    wan = {**WAN, "dim": 256, "ffn_dim": 512, "freq_dim": 256, "out_dim": 16, "num_layers": 3}
    vace = {**wan, "in_dim": 16, "num_layers": 4, "vace_layers": 2, "vace_in_dim": 96}
    i2v = {**wan, "model_type": "i2v", "in_dim": 36}
    hunyuan_15 = {**HUNYUAN, **wide, "in_channels": 65, "out_channels": 32, "vec_in_dim": None}
    hunyuan_15 |= {"axes_dim": [16, 56, 56], "guidance_embed": False, "vision_in_dim": 1152}
    hunyuan_15 |= {"use_cond_type_embedding": True, "meanflow_sum": True, "byt5": True}
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
        "hunyuan-video-1.5": {
            "label": "Hunyuan Video 1.5, Hunyuan Image 2.1",
            "path": "hunyuan_video.model:HunyuanVideo",
            "config": hunyuan_15,
            "latent": [[1, 32, 2, 8, 8]],
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
        "wan-i2v": {
            "label": "Wan 2.1, 2.2: image to video",
            "path": "wan.model:WanModel",
            "config": i2v,
            "metadata": i2v,
            "latent": [video],
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
                "num_attention_heads": 4,
                "attention_head_dim": 64,
                "in_channels": 16,
                "out_channels": 16,
                "time_embed_dim": 256,
                "text_embed_dim": 16,
                "num_layers": 3,
                "use_rotary_positional_embeddings": True,
            },
            "latent": [video],
            "text": 16,
        },
        "kandinsky": {
            "label": "Kandinsky 5",
            "path": "kandinsky5.model:Kandinsky5",
            "config": {
                "time_dim": 256,
                "model_dim": 256,
                "ff_dim": 512,
                "num_text_blocks": 1,
                "num_visual_blocks": 3,
            },
            "latent": [video],
            "text": 3584,
            "pooled": 768,
        },
        "krea2": {
            "label": "Krea 2",
            "path": "krea2.model:SingleStreamDiT",
            "config": {
                **{"features": 256, "heads": 2, "kvheads": 2, "layers": 3, "channels": 16},
                **{"txtlayers": 3, "txtdim": 40, "txtheads": 20, "txtkvheads": 20},
            },
            "latent": [picture],
            "text": 120,
        },
        "joyimage": {
            "label": "JoyImage",
            "path": "joyimage.model:JoyImageTransformer3DModel",
            "config": {
                **{"in_channels": 16, "hidden_size": 256, "num_attention_heads": 2},
                **{"text_dim": 4096, "num_layers": 3, "rope_dim_list": [16, 56, 56]},
            },
            "latent": [video],
            "text": 4096,
        },
        "hunyuan3d": {
            "label": "Hunyuan3D 2",
            "path": "hunyuan3d.model:Hunyuan3Dv2",
            "config": {
                **{"in_channels": 64, "context_in_dim": 16, "hidden_size": 256, "num_heads": 16},
                **{"depth": 2, "depth_single_blocks": 2, "qkv_bias": True},
            },
            "latent": [[1, 64, 19]],
            "text": 16,
        },
        "hunyuan3d-2.1": {
            "label": "Hunyuan3D 2.1",
            "path": "hunyuan3dv2_1.hunyuandit:HunYuanDiTPlain",
            "config": {
                **{"in_channels": 64, "hidden_size": 256, "context_dim": 1024, "depth": 7},
                **{"num_heads": 16, "qkv_bias": False, "guidance_cond_proj_dim": None},
            },
            "latent": [[1, 64, 19]],
            "text": 1024,
        },
        "lens": {
            "label": "Lens",
            "path": "lens.model:LensTransformer2DModel",
            "config": {
                "in_channels": 128,
                "out_channels": 32,
                "num_layers": 3,
                "num_attention_heads": 4,
                "enc_hidden_dim": 16,
                "selected_layer_index": (0, 1),
            },
            "latent": [wide_picture],
            "text": 32,
        },
    }


def file_of(name: str, kind: str) -> str:
    """The file of a family in a format of formats.py."""
    return f"stock-{name}.safetensors" if kind == "fp32" else f"stock-{name}-{kind}.safetensors"


def lora(weights: dict[str, Any], rank: int = 2) -> dict[str, Any]:
    """Low-rank changes under the names that every architecture knows."""
    from harness.own_process.architectures import Draw

    draw, changes = Draw(11), {}
    for key, weight in weights.items():
        if any(part in key for part in IN_THE_HOST):
            continue
        if key.endswith(".weight") and weight.ndim == 2:
            layer, (outputs, inputs) = "diffusion_model." + key[: -len(".weight")], weight.shape
            changes[f"{layer}.lora_up.weight"] = 0.3 * draw(outputs, rank)
            changes[f"{layer}.lora_down.weight"] = draw(rank, inputs) / inputs**0.5
    return changes


def main(comfyui: str, models: str, kinds: str = "{}", *names: str) -> None:
    """Write those of `names`, by default all."""
    sys.path[:0] = [comfyui, str(Path(__file__).resolve().parents[2])]
    sys.argv[1:] = ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import torch
    from safetensors.torch import save_file

    from asyncdiff_core.algorithm.trunk import Trunk
    from asyncdiff_core.comfyui.model.layouts import layout_of
    from harness.own_process.architectures import Architecture
    from harness.own_process.formats import FORMATS, layers_of

    wanted = json.loads(kinds)
    folders = [Path(models) / kind for kind in ("diffusion_models", "loras")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, family in families().items():
        if names and name not in names:
            continue
        path, config = family.pop("path"), family.pop("config")
        architecture = Architecture("", path, config, lambda draw: {})
        if not architecture.is_known():
            written[name] = {"class": architecture.class_name, "missing": True, **family}
            continue
        model = architecture.build()
        dtype = torch.float16 if family.pop("half", False) else torch.float32
        weights = {key: value.to(dtype) for key, value in model.state_dict().items()}
        metadata = {"format": "pt"}
        if "metadata" in family:
            metadata["config"] = json.dumps({"transformer": family.pop("metadata")})
        layers = layers_of(model, [u.module for u in Trunk.of(model, layout_of(model)).units])
        known = [kind for kind in wanted.get(name, FORMATS) if kind in FORMATS]
        for kind in known:
            file = folders[0] / file_of(name, kind)
            converted = FORMATS[kind](weights, layers)
            save_file({k: v.contiguous() for k, v in converted.items()}, file, metadata=metadata)
        save_file(lora(weights), folders[1] / file_of(name, "fp32"))
        written[name] = {"class": type(model).__name__, "formats": known, **family}
    print(json.dumps(written))


if __name__ == "__main__":
    main(*sys.argv[1:])
