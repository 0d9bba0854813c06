"""What the demonstration is made of: twins of workflows, and comparing pictures."""

import math

import numpy as np
import pytest
from PIL import Image

from demo import graphs, pictures


def test_a_twin_has_the_packs_loader_and_sampler_and_is_else_the_same():
    stock = graphs.sd15("model.safetensors", steps=4)
    twin = graphs.asyncdiff(stock, devices="cpu,cpu", warm_up=2)
    assert twin["model"]["class_type"] == "AsyncDiffCheckpointLoader"
    assert twin["model"]["inputs"] == {
        "ckpt_name": "model.safetensors",
        "devices": "cpu,cpu",
        "stages": 0,
        "replicas": 0,
        "stride": 1,
    }
    assert twin["sampler"]["class_type"] == "AsyncDiffKSampler"
    assert twin["sampler"]["inputs"] == {
        **stock["sampler"]["inputs"],
        "warm_up": 2,
        "time_shift": False,
    }
    others = stock.keys() - {"model", "sampler"}
    assert all(twin[name] == stock[name] for name in others)
    assert stock["model"]["class_type"] == "CheckpointLoaderSimple"  # left as it was


def test_only_the_loader_of_the_sampled_model_is_replaced():
    twin = graphs.asyncdiff(graphs.wan("wan.safetensors", "text.safetensors", "vae.safetensors"))
    assert twin["model"]["class_type"] == "AsyncDiffDiffusionModelLoader"
    assert twin["text"]["class_type"] == "CheckpointLoaderSimple"


def test_the_loader_is_found_behind_a_lora():
    stock = graphs.resampled(graphs.sd15("model.safetensors"), model=["lora", 0])
    stock["lora"] = graphs.node("LoraLoaderModelOnly", model=["model", 0])
    twin = graphs.asyncdiff(stock)
    assert twin["model"]["class_type"] == "AsyncDiffCheckpointLoader"
    assert twin["lora"] == stock["lora"]


def picture(value: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, (value, value, value))


def test_psnr():
    assert pictures.psnr([picture(7)], [picture(7)]) == math.inf
    assert pictures.psnr([picture(0)], [picture(255)]) == 0
    frames = [picture(10), picture(10)]
    assert pictures.psnr(frames, [picture(10), picture(20)]) == pytest.approx(
        10 * math.log10(255**2 / 50)
    )


@pytest.mark.parametrize(("apart", "factor"), [(0, 32), (5, 32), (10, 16), (100, 2), (200, 1)])
def test_a_difference_is_made_as_bright_as_fits(apart, factor):
    image, found = pictures.difference(picture(20), picture(20 + apart))
    assert found == factor
    assert np.asarray(image).max() == apart * factor


@pytest.mark.parametrize(("frames", "shown"), [(1, [0]), (3, [0, 1, 2]), (13, [0, 4, 8, 12])])
def test_a_strip_spans_the_whole_video(frames, shown):
    image = pictures.strip([picture(value) for value in range(frames)])
    assert image.size == (8 * len(shown), 8)
    assert [image.getpixel((8 * place, 0))[0] for place in range(len(shown))] == shown


def test_strips_stand_below_each_other_and_pictures_side_by_side():
    still = [pictures.Panel(picture(0, (320, 320)), ("caption", "line"))] * 3
    wide = [pictures.Panel(picture(0, (960, 240)), ("caption", "line"))] * 3
    width, height = pictures.side_by_side("title", still).size
    assert width > 3 * 320 and height < 2 * 320
    width, height = pictures.side_by_side("title", wide).size
    assert width < 2 * 960 and height > 3 * 240
