"""The demonstration's checkpoints: ComfyUI's own nodes load them whole and sample them stably."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from demo import checkpoints, graphs
from demo.comfy_server import ComfyServer

SD15, WAN, SD3 = "tiny_sd15.safetensors", "tiny_wan.safetensors", "tiny_sd3.safetensors"
VIDEO_VAE = "tiny_taehv.safetensors"
COMPLAINTS = ("missing", "unexpected", "not loaded", "warning", "no clip", "no vae")


@pytest.fixture(scope="module")
def models(server: ComfyServer) -> Path:
    """The server's model folder, with all kinds of checkpoints in it."""
    checkpoints.write_sd15(server.models / "checkpoints" / SD15, size="tiny")
    checkpoints.write_wan(server.models / "diffusion_models" / WAN, size="tiny")
    checkpoints.write_sd3(server.models / "diffusion_models" / SD3, depth=4)
    checkpoints.write_video_vae(server.models / "vae" / VIDEO_VAE)
    for model in ("sd15", "wan"):
        lora = server.models / "loras" / f"tiny_{model}.safetensors"
        checkpoints.write_lora(lora, model=model, size="tiny")
    return server.models


SAMPLING = {"steps": 30, "cfg": 5.0}
WORKFLOWS = {
    "sd15": graphs.sd15(SD15, width=64, height=64, **SAMPLING),
    "wan": graphs.wan(WAN, SD15, VIDEO_VAE, width=64, height=64, length=5, **SAMPLING),
    "sd3": graphs.sd3(SD3, SD15, width=64, height=64, **SAMPLING),
}


def with_lora(workflow: graphs.Workflow, lora: str) -> graphs.Workflow:
    loader = graphs.node(
        "LoraLoaderModelOnly", model=["model", 0], lora_name=lora, strength_model=1.0
    )
    return {**graphs.resampled(workflow, model=["lora", 0]), "lora": loader}


def latent(server: ComfyServer, workflow: graphs.Workflow) -> torch.Tensor:
    files = server.files(server.run(workflow))
    [path] = [path for path in files if path.suffix == ".latent"]
    return load_file(path)["latent_tensor"]


@pytest.mark.parametrize("model", WORKFLOWS)
def test_loads_whole_and_samples_stably(model, server, models):
    before = len(server.log_text())
    result = latent(server, WORKFLOWS[model])
    said = server.log_text()[before:].lower()
    assert not [complaint for complaint in COMPLAINTS if complaint in said], said
    assert result.isfinite().all()
    # Of order one in the model's own scale; the saved one is divided by 0.18 for SD 1.5.
    assert 0.1 < result.std() < 20


@pytest.mark.parametrize("model", ["sd15", "wan"])
def test_lora_fits_and_matters(model, server, models):
    workflow = graphs.resampled(WORKFLOWS[model], steps=3)
    plain = latent(server, workflow)
    before = len(server.log_text())
    changed = latent(server, with_lora(workflow, f"tiny_{model}.safetensors"))
    assert "not loaded" not in server.log_text()[before:]
    assert (changed - plain).std() > 0.05 * plain.std()


def test_the_text_matters(server, models):
    workflow = graphs.resampled(WORKFLOWS["sd15"], steps=3)
    other = graphs.node("CLIPTextEncode", clip=["model", 1], text="a city at night")
    one, two = latent(server, workflow), latent(server, {**workflow, "positive": other})
    assert (one - two).std() > 0.05 * one.std()


def test_pictures_are_not_flat(server, models):
    from PIL import Image, ImageStat

    for model in ("sd15", "wan"):
        files = server.files(server.run(WORKFLOWS[model]))
        pictures = [path for path in files if path.suffix == ".png"]
        assert len(pictures) == (5 if model == "wan" else 1)
        for path in pictures:
            with Image.open(path) as picture:
                assert max(ImageStat.Stat(picture).stddev) > 10


def test_the_same_weights_every_time(tmp_path):
    first = checkpoints.write_wan(tmp_path / "first.safetensors", size="tiny")
    second = checkpoints.write_wan(tmp_path / "second.safetensors", size="tiny")
    one, two = load_file(first), load_file(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_written_file_is_not_written_again_but_a_foreign_one_is_replaced(tmp_path):
    path = tmp_path / "wan.safetensors"
    checkpoints.write_wan(path, size="tiny")
    written = path.stat().st_mtime_ns
    checkpoints.write_wan(path, size="tiny")
    assert path.stat().st_mtime_ns == written
    checkpoints.write_wan(path, size="demo")
    assert path.stat().st_size > 8e6


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def save_half(tensors, filename, metadata):
        Path(filename).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save_file", save_half)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.write_wan(tmp_path / "wan.safetensors", size="tiny")
    assert not list(tmp_path.iterdir())
