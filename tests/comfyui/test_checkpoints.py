"""The small checkpoints: ComfyUI's own nodes load them whole and sample them stably."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops, ImageStat
from safetensors.torch import load_file

from harness import checkpoints
from harness.comfy_server import ComfyServer
from harness.graphs import Workflow, node
from harness.lab import KINDS, asyncdiff, latent, with_lora, workflow, write_models

NAME = "unseen"  # files of their own, so that they are loaded here, and their loading is logged
COMPLAINTS = ("missing", "unexpected", "not loaded", "warning", "no clip", "no vae")


@pytest.fixture(scope="module", autouse=True)
def models(server: ComfyServer) -> None:
    write_models(server.models, NAME)


@pytest.mark.parametrize("kind", KINDS)
def test_loads_whole_and_samples_stably(kind: str, server: ComfyServer) -> None:
    before = len(server.log_text())
    result = latent(server, workflow(kind, NAME, steps=30))
    said = server.log_text()[before:].lower()
    assert not [complaint for complaint in COMPLAINTS if complaint in said], said
    assert result.isfinite().all()
    # Of order one in the model's own scale; the saved one is divided by 0.18 for SD 1.5.
    assert 0.1 < result.std() < 20


@pytest.mark.parametrize("kind", ["sd15", "wan"])
def test_lora_fits_and_matters(kind: str, server: ComfyServer) -> None:
    plain = latent(server, workflow(kind, NAME))
    before = len(server.log_text())
    changed = latent(server, with_lora(workflow(kind, NAME), kind, name=NAME))
    assert "not loaded" not in server.log_text()[before:]
    assert (changed - plain).std() > 0.05 * plain.std()


def test_the_text_matters(server: ComfyServer) -> None:
    flow = workflow("sd15", NAME)
    other = node("CLIPTextEncode", clip=["model", 1], text="a city at night")
    one, two = latent(server, flow), latent(server, {**flow, "positive": other})
    assert (one - two).std() > 0.05 * one.std()


def test_both_loaders_give_the_vae(server: ComfyServer) -> None:
    def picture(flow: Workflow) -> Image.Image:
        decode = node("VAEDecode", samples=["sampler", 0], vae=["model", 2])
        save = node("SaveImage", images=["decode", 0], filename_prefix="small")
        files = server.files(server.run({**flow, "decode": decode, "picture": save}))
        [path] = [path for path in files if path.suffix == ".png"]
        with Image.open(path) as image:
            return image.convert("RGB")

    stock = picture(workflow("sd15", NAME))
    assert max(ImageStat.Stat(stock).stddev) > 10
    ours = picture(asyncdiff(workflow("sd15", NAME), warm_up=5))
    assert ImageChops.difference(ours, stock).getbbox() is None


def test_the_same_weights_every_time(tmp_path):
    first = checkpoints.write_wan(tmp_path / "first.safetensors")
    second = checkpoints.write_wan(tmp_path / "second.safetensors")
    one, two = load_file(first), load_file(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_written_file_is_not_written_again_but_a_foreign_one_is_replaced(tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoints.write_wan(path)
    written = path.stat()
    checkpoints.write_wan(path)
    assert path.stat().st_mtime_ns == written.st_mtime_ns
    checkpoints.write_sd3(path, depth=4)
    assert path.stat().st_size > 2 * written.st_size


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def save_half(tensors, filename, metadata):
        Path(filename).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save_file", save_half)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.write_wan(tmp_path / "wan.safetensors")
    assert not list(tmp_path.iterdir())
