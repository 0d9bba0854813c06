"""What the demonstration is made of: twins of workflows, plans, comparing pictures."""

import math

import pytest
from PIL import Image

from demo import pictures, run
from demo.workflow import shapes_workflow
from harness import graphs

PROMPTS = ["one red circle on blue", "two black squares on white"]


def test_the_workflow_has_a_latent_for_each_prompt():
    flow = shapes_workflow(PROMPTS, steps=4)
    assert flow["positive"]["inputs"]["text"].splitlines() == PROMPTS
    assert flow["negative"]["inputs"]["text"] == ""
    assert flow["empty"]["inputs"]["batch_size"] == 2
    assert flow["sampler"]["inputs"]["model"] == ["shifted", 0]
    links = [v for one in flow.values() for v in one["inputs"].values() if isinstance(v, list)]
    assert {name for name, _ in links} <= flow.keys()


def test_a_twin_has_the_packs_loader_and_sampler_and_is_else_the_same():
    stock = shapes_workflow(PROMPTS, steps=4)
    twin = graphs.asyncdiff(stock, devices="cpu,cpu", warm_up=2)
    assert twin["model"]["class_type"] == "AsyncDiffDiffusionModelLoader"
    assert twin["model"]["inputs"] == {
        **stock["model"]["inputs"],
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
    assert stock["model"]["class_type"] == "UNETLoader"  # left as it was


def test_only_the_loader_of_the_sampled_model_is_replaced():
    stock = shapes_workflow(PROMPTS)
    stock["text"] = graphs.node("CheckpointLoaderSimple", ckpt_name="text.safetensors")
    twin = graphs.asyncdiff(stock)
    assert twin["model"]["class_type"] == "AsyncDiffDiffusionModelLoader"
    assert twin["text"] == stock["text"]


def test_the_loader_is_found_behind_several_nodes():
    stock = graphs.resampled(shapes_workflow(PROMPTS), model=["lora", 0])
    stock["lora"] = graphs.node("LoraLoaderModelOnly", model=["shifted", 0])
    twin = graphs.asyncdiff(stock)
    assert twin["model"]["class_type"] == "AsyncDiffDiffusionModelLoader"
    assert twin["lora"] == stock["lora"] and twin["shifted"] == stock["shifted"]


@pytest.mark.parametrize(
    ("devices", "first", "second"),
    [
        (["cpu"], "cpu,cpu", "cpu,cpu,cpu"),
        (["cuda:0", "cuda:1"], "cuda:0,cuda:1", "cuda:0,cuda:1,cuda:0"),
        (["a", "b", "c", "d"], "a,b", "a,b,c"),
    ],
)
def test_devices_are_taken_in_turn(devices, first, second):
    plans = [",".join(setting.plan(devices).devices) for setting in run.SETTINGS]
    assert plans == [first, second]


@pytest.mark.parametrize(
    ("devices", "found"),
    [
        ("cpu,cpu", None),
        ("cpu,cpu,cpu", "3 workers share 2 cores"),
        ("cuda:0,cuda:1", None),
        ("cuda:0,cuda:0", "2 workers share 1 GPU:"),
        ("cuda:0,cuda:1,cuda:0", "3 workers share 2 GPUs"),
        ("cuda:0,cpu", None),
    ],
)
def test_workers_that_share_a_processor_are_told(devices, found, monkeypatch):
    monkeypatch.setattr(run, "num_cores", lambda: 2)
    told = run.crowding(devices.split(","))
    assert told is None if found is None else told.startswith(found)


def test_a_figure_that_is_missing_is_a_dash():
    figures = dict.fromkeys((key for _, key, _ in run.TABLE), 1.0)
    lines = run.table([{**figures, "setting": "N=2"}, {**figures, "psnr_db": None}]).splitlines()
    assert lines[0].split()[-2:] == ["N=2", "1.0"]
    assert [line.split()[-1] for line in lines if line.startswith("PSNR")] == ["-"]


def picture(value: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, (value, value, value))


def test_psnr():
    assert pictures.psnr([picture(7)], [picture(7)]) == math.inf
    assert pictures.psnr([picture(0)], [picture(255)]) == 0
    frames = [picture(10), picture(10)]
    assert pictures.psnr(frames, [picture(10), picture(20)]) == pytest.approx(
        10 * math.log10(255**2 / 50)
    )


def test_a_grid_frames_what_is_marked():
    values = [10, 20, 30, 40, 50, 60]
    sheet = pictures.grid([picture(v) for v in values], 3, [v == 50 for v in values])
    pitch, frame = 8 * pictures.ENLARGED + pictures.FRAME, pictures.FRAME
    assert sheet.size == (3 * pitch + frame, 2 * pitch + frame)
    for index, value in enumerate(values):
        x, y = (place * pitch + frame for place in (index % 3, index // 3))
        assert sheet.getpixel((x, y)) == sheet.getpixel((x + pitch - frame - 1, y)) == (value,) * 3
        is_marked = sheet.getpixel((x + 2, y - 1)) == (0xD2, 0x32, 0x2D)
        assert is_marked == (value == 50)


def test_panels_stand_side_by_side_and_their_texts_below():
    panels = [pictures.Panel(picture(0, (320, 320)), ("caption", "line"))] * 3
    texts = [f"text {index}" for index in range(8)]
    width, height = pictures.side_by_side("title", panels, "heading", texts, 4).size
    assert 3 * 320 < width < 4 * 320
    _, taller = pictures.side_by_side("title", panels, "heading", texts * 2, 4).size
    assert taller == height + 2 * pictures.LINE_HEIGHT
