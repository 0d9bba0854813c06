"""Run in a process of its own: tiny models of the families that the official templates use.

    python template_models.py COMFYUI MODELS FILES

FILES is a JSON list of [family, format, folder]. Families of stock_format.py are written in the
stock format, for UNETLoader or CheckpointLoaderSimple. The others are too large in that format;
they are written as MODELS/diffusion_models/described-<name>.safetensors, for the loader of
adapter_pack/tiny.py. Each has a LoRA of the same name.
Prints one JSON object: per name the class of the diffusion model and the inputs of one sampling.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

EMBEDDERS = ("seconds_start", "seconds_total")  # of Stable Audio, beside its diffusion model


def families() -> dict[str, dict[str, Any]]:
    """Per name, for those that are not in stock_format.py.

    `model` is the class in comfy.supported_models, `config` that of the diffusion model; the rest
    is as in stock_format.py. `more` are further tensors of the conditioning, `vision` the width of
    what an image encoder gives.
    """
    from harness.own_process.architectures import (
        ARCHITECTURES,
        CHROMA,
        COSMOS2,
        FLUX,
        HUNYUAN,
        LUMINA,
        UNET,
        WAN,
    )

    of = {each.label: each.config for each in ARCHITECTURES}
    unet = {**UNET, "model_channels": 64, "use_linear_in_transformer": True}
    adm = {"num_classes": "sequential", "context_dim": 32}
    flux = {**FLUX, "in_channels": 16, "out_channels": 16}
    wan = {**WAN, "in_dim": 16, "out_dim": 16}
    lumina = {**LUMINA, "in_channels": 16}
    chroma = {**CHROMA, "in_channels": 64, "out_channels": 64}
    both = {"in_channels": 128, "out_channels": 128}
    picture, video, wide = [1, 16, 16, 16], [1, 16, 2, 8, 8], [1, 128, 6, 6]

    def sd(model: str, channels: int = 4, text: int = 32, **config: Any) -> dict[str, Any]:
        more = {"in_channels": channels, "context_dim": text, **config}
        return {"model": model, "config": {**unet, **more}, "latent": [[1, 4, 8, 8]], "text": text}

    def of_flux(model: str, **config: Any) -> dict[str, Any]:
        made = {"model": model, "config": {**flux, **config}, "latent": [picture], "text": 16}
        return {**made, "pooled": made["config"]["vec_in_dim"] or 0}

    def of_wan(model: str, of: dict[str, Any] = wan, **config: Any) -> dict[str, Any]:
        made = {"model": model, "config": {**of, **config}, "latent": [video], "text": 16}
        channels = made["config"]["out_dim"] = config.get("out_dim", 16)
        return {**made, "latent": [[1, channels, 2, 8, 8]]}

    def plain(
        model: str, label: str, latent: list[int], config: dict[str, Any], **more: Any
    ) -> dict[str, Any]:
        made = {"model": model, "config": {**of[label], **config}, "latent": [latent]}
        return {**made, "text": 16, **more}

    hunyuan = {**HUNYUAN, "vec_in_dim": None, "guidance_embed": False, "out_channels": 32}
    hunyuan |= {"use_cond_type_embedding": True, "meanflow_sum": True, "byt5": True}
    sixteen = {"in_channels": 16, "out_channels": 16}
    svd = {**of["SVD, SV3D"], "model_channels": 64, "context_dim": 1024, "adm_in_channels": 768}
    audio = {"embed_dim": 64, "depth": 5, "num_heads": 2, "cond_token_dim": 768}
    audio["project_cond_tokens"] = True
    dancer = {**of["WanDancer"], "in_dim": 36, "out_dim": 16}
    return {
        "sd15": sd("SD15", use_linear_in_transformer=False),
        "sdxl": {**sd("SDXL", **adm, adm_in_channels=2816), "pooled": 1280, "vision": 1280},
        "sdxl-refiner": {**sd("SDXLRefiner", **adm, adm_in_channels=2560), "pooled": 1280},
        "lotus": sd("LotusD", text=1024, num_classes="sequential", adm_in_channels=4),
        "svd": {
            **{"model": "SVD_img2vid", "config": {**svd, "use_linear_in_transformer": True}},
            **{"latent": [[2, 4, 8, 8]], "text": 1024, "vision": 1024, "frames": 2},
        },
        "sd3": plain("SD3", "SD3, SD3.5", picture, {"in_channels": 16}, pooled=8),
        # As wide a pooled text as Stability's ControlNets take.
        "sd3.5": plain(
            *("SD3", "SD3, SD3.5", picture, {"in_channels": 16, "adm_in_channels": 2048}),
            pooled=2048,
        ),
        "flux-fill": of_flux("FluxInpaint", in_channels=96),
        "flux-canny": of_flux("Flux", in_channels=32),
        "flux-schnell": of_flux("FluxSchnell", guidance_embed=False),
        "ovis": of_flux("FluxSchnell", guidance_embed=False, vec_in_dim=None, yak_mlp=True),
        "longcat": of_flux(
            "LongCatImage", guidance_embed=False, vec_in_dim=None, txt_ids_dims=[1, 2]
        ),
        "chroma": {"model": "Chroma", "config": chroma, "latent": [picture], "text": 16},
        "chroma-radiance": plain("ChromaRadiance", "Chroma Radiance", [1, 3, 32, 32], {}),
        "qwen-image": plain(
            "QwenImage",
            "Qwen-Image, Qwen-Image-Edit",
            [1, 16, 1, 16, 16],
            {"in_channels": 64, "out_channels": 16},
        ),
        "qwen-image-layered": plain(
            "QwenImage",
            "Qwen-Image, Qwen-Image-Edit",
            [1, 16, 3, 16, 16],
            {
                **{"in_channels": 64, "out_channels": 16, "use_additional_t_cond": True},
                "default_ref_method": "negative_index",
            },
        ),
        "mage-flow": plain("MageFlow", "Mage-Flow", wide, both),
        "lumina2": {"model": "Lumina2", "config": lumina, "latent": [picture], "text": 16},
        "newbie": {
            **{"model": "Lumina2", "config": {**lumina, "clip_text_dim": 8}, "pooled": 8},
            **{"latent": [picture], "text": 16},
        },
        "z-image": plain("ZImage", "Z-Image", picture, {"in_channels": 16}),
        "hidream": plain(
            "HiDream",
            "HiDream I1",
            picture,
            sixteen,
            pooled=8,
            more={"conditioning_llama3": [1, 6, 5, 16]},
        ),
        "hidream-o1": {
            "model": "HiDreamO1",
            "config": {
                "text_config_overrides": {
                    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3},
                    **{"num_attention_heads": 2, "num_key_value_heads": 1},
                },
                "vision_config_overrides": {
                    **{"hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "depth": 2},
                    "deepstack_visual_indexes": [0, 1],
                },
            },
            **{"latent": [[1, 3, 64, 64]], "text": 16},
            "more": {"text_input_ids_tokens": [1, 7]},
        },
        "minimax-h3": {
            "model": "MiniMaxH3",
            "config": {
                **{"hidden_size": 64, "num_layers": 3, "token_refiner_num_layers": 1},
                **{"num_attention_heads": 2, "ffn_hidden_size": 96, "text_dim": 16},
                **{"time_embed_hidden_size": 64, "time_embed_dim": 32},
            },
            **{"latent": [[1, 24, 2, 4, 4], [1, 32, 2, 16]], "text": 16, "nested": True},
        },
        "omnigen2": plain("Omnigen2", "OmniGen2", picture, {"in_channels": 16}, masked=True),
        "boogu": plain("Boogu", "Boogu", picture, {"in_channels": 16}, masked=True),
        "anima": {
            **{"model": "Anima", "config": {**COSMOS2, **sixteen}, "text": 16},
            "latent": [[1, 16, 1, 16, 16]],
        },
        "ernie": plain("ErnieImage", "Ernie Image", wide, both),
        "ideogram4": plain("Ideogram4", "Ideogram 4", wide, {"in_channels": 128}),
        "pixeldit": plain("PixelDiTT2I", "PixelDiT", [1, 3, 32, 32], {}),
        "pid": plain("PiD", "PiD", [1, 3, 32, 32], {"lq_latent_channels": 16}),
        "kandinsky-image": plain(
            "Kandinsky5Image",
            "Kandinsky 5",
            [1, 16, 1, 16, 16],
            {"in_visual_dim": 16, "out_visual_dim": 16, "visual_embed_dim": 64},
            pooled=8,
        ),
        "seedvr2": plain("SeedVR2", "SeedVR2", [1, 16, 2, 8, 8], {"txt_in_dim": 5120}, text=5120),
        "triposplat": {
            **plain("TripoSplat", "TripoSplat", [], {**sixteen, "cond2_channels": 128}),
            **{"latent": [[1, 16, 16], [1, 1, 5]], "nested": True},
        },
        "cogvideox-inpaint": {
            "model": "CogVideoX_Inpaint",
            "config": {**of["CogVideoX"], "in_channels": 48, "out_channels": 16},
            **{"latent": [video], "text": 16},
        },
        "hunyuan-video-sr": {
            "model": "HunyuanVideo15_SR_Distilled",
            "config": {**hunyuan, "in_channels": 98, "vision_in_dim": 1152},
            **{"latent": [[1, 32, 2, 8, 8]], "text": 16},
        },
        "wan-t2v": of_wan("WAN21_T2V"),
        "wan22-i2v": of_wan("WAN21_T2V", in_dim=36),
        "wan22-control": of_wan("WAN21_T2V", in_dim=52, in_dim_ref_conv=16),
        "wan-control": of_wan("WAN21_FunControl2V", in_dim=48, model_type="i2v"),
        "wan22-5b": of_wan("WAN22_T2V", in_dim=48, out_dim=48),
        "wan22-5b-control": of_wan("WAN22_T2V", in_dim=148, out_dim=48, in_dim_ref_conv=48),
        "wan22-5b-inpaint": of_wan("WAN22_T2V", in_dim=100, out_dim=48),
        "wan-camera": of_wan(
            "WAN21_Camera", model_type="camera", in_dim=32, in_dim_control_adapter=24
        ),
        "wan22-camera": of_wan(
            "WAN22_Camera", model_type="camera_2.2", in_dim=36, in_dim_control_adapter=24
        ),
        "wan-s2v": {
            **of_wan("WAN22_S2V", of["Wan S2V"], model_type="s2v", in_dim=16, cond_dim=16),
            "audio": [25, 8],
        },
        "wan-humo": {
            **of_wan("WAN21_HuMo", of["Wan HuMo"], model_type="humo", in_dim=36),
            "audio": [33, 1280],
        },
        "wan-scail2": of_wan(
            "WAN21_SCAIL2", of["Wan SCAIL 2"], model_type="scail2", in_dim=20, mask_in_dim=28
        ),
        "wan-dancer": of_wan("WAN22_WanDancer", dancer, model_type="wandancer"),
        "wan-causal": of_wan("WAN21_CausalAR_T2V"),
        "ace-step": {
            **plain("ACEStep", "ACE-Step", [1, 8, 16, 11], {"speaker_embedding_dim": 512}),
            "more": {"conditioning_lyrics_tokens": [1, 6]},
        },
        "ace-step-1.5": plain(
            "ACEStep15",
            "ACE-Step 1.5",
            [1, 64, 20],
            {"in_channels": 192, "timbre_hidden_dim": 64, "audio_acoustic_hidden_dim": 64},
            more={"conditioning_lyrics": [1, 6, 16]},
        ),
        "stable-audio": {
            **{"model": "StableAudio", "config": {**audio, "io_channels": 64}, "text": 768},
            "latent": [[1, 64, 40]],
        },
        "stable-audio-3": {
            "model": "StableAudio3",
            "config": {
                **{**audio, "io_channels": 256, "global_cond_dim": 768},
                **{"timestep_features_type": "expo", "global_cond_type": "adaLN"},
                **{"local_add_cond_dim": 257, "global_cond_shared_embed": True},
            },
            **{"latent": [[1, 256, 40]], "text": 768},
        },
    }


def described(folder: Path, name: str, family: dict[str, Any]) -> dict[str, Any]:
    """Write the file and the LoRA of a family; what a sampling needs."""
    import comfy.ldm.audio.embedders
    import comfy.supported_models
    import torch
    from safetensors.torch import save_file

    from harness.own_process.architectures import fill
    from harness.own_process.stock_format import lora

    model, config = family.pop("model"), family.pop("config")
    kind = getattr(comfy.supported_models, model, None)
    if kind is None:
        return {"missing": True, **family}
    more = {}
    if "dit1.0" in kind.unet_config.values():
        embedder = comfy.ldm.audio.embedders.NumberConditioner(
            768, **({"fourier_features_type": "expo"} if name == "stable-audio-3" else {})
        )
        fill(embedder)
        more = {
            f"conditioner.conditioners.{part}.{key}": value.clone()
            for part in EMBEDDERS
            for key, value in embedder.state_dict().items()
        }
    made = kind(config)
    made.unet_config.update(config)  # the class sets some of its own
    made.set_inference_dtype(torch.float32, None)
    whole = made.get_model(dict(more), "", device="cpu").diffusion_model
    fill(whole)
    weights = {k: v.contiguous() for k, v in whole.state_dict().items()}
    metadata = {"described": json.dumps({"model": model, "config": config}, default=str)}
    file = f"described-{name}.safetensors"
    save_file({**weights, **more}, folder / "diffusion_models" / file, metadata=metadata)
    save_file(lora(weights), folder / "loras" / file)
    return {"class": type(whole).__name__, "file": file, **family}


def in_stock_format(comfyui: str, folder: Path, wanted: list[list[str]]) -> dict[str, Any]:
    """Write files of stock_format.py, and those that are wanted as checkpoints as such."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    from harness.own_process import stock_format

    kinds: dict[str, list[str]] = {}
    for name, kind, _ in wanted:
        kinds.setdefault(name, []).append(kind)
    if not kinds:
        return {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        stock_format.main(comfyui, str(folder), json.dumps(kinds), *kinds)
    for name, kind, place in wanted:
        path = folder / "diffusion_models" / stock_format.file_of(name, kind)
        if place == "checkpoints" and path.exists():
            with safe_open(path, "pt") as file:
                keys = list(file.keys())
                weights = {f"model.diffusion_model.{key}": file.get_tensor(key) for key in keys}
                save_file(weights, folder / place / path.name, file.metadata())
    written: dict[str, Any] = json.loads(printed.getvalue().splitlines()[-1])
    return written


def main(comfyui: str, models: str, files: str) -> None:
    sys.path[:0] = [comfyui, str(Path(__file__).resolve().parents[2])]
    sys.argv[1:] = ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    folder = Path(models)
    for kind in ("diffusion_models", "loras", "checkpoints"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    every, wanted = families(), json.loads(files)
    written = in_stock_format(comfyui, folder, [file for file in wanted if file[0] not in every])
    for name, *_ in wanted:
        if name in every and name not in written:
            written[name] = described(folder, name, every[name])
    print(json.dumps(written))


if __name__ == "__main__":
    main(*sys.argv[1:])
