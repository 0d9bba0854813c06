"""The workflow files against a live server: its own description of its nodes must allow them."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.comfy_server import ComfyServer

FOLDER = Path(__file__).parents[2] / "workflows"
STEMS = sorted(path.stem for path in FOLDER.glob("*.json"))

# Which files there are is the machine's matter.
MODEL_FILES = ("ckpt_name", "unet_name", "clip_name", "clip_name1", "clip_name2", "vae_name")
MODEL_FILES += ("lora_name", "control_net_name", "image", "text_encoder")
# What an older ComfyUI does not know yet, and passes over.
NEWER = {"CreateVideo": ["bit_depth"]}
WIDGET_TYPES = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}
WIDGET_TYPES["FLOAT,INT"] = WIDGET_TYPES["FLOAT"]


@pytest.fixture(scope="module")
def nodes(server: ComfyServer) -> dict[str, Any]:
    return server.get("/object_info")


def api_format(stem: str) -> dict[str, Any]:
    return json.loads((FOLDER / "api" / f"{stem}.json").read_text("utf-8"))


def declared(node: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """A node's inputs in their order: name to type and options."""
    inputs = {}
    for section in ("required", "optional"):
        for name in node["input_order"].get(section, ()):
            kind, *options = node["input"][section][name]
            inputs[name] = (kind, options[0] if options else {})
    return inputs


def known(workflow: dict[str, Any], nodes: dict[str, Any]) -> dict[str, Any]:
    """The workflow without what is newer than the server."""
    result = {}
    for name, node in workflow.items():
        there = nodes.get(node["class_type"])
        unknown = newer(node["class_type"], there) if there else []
        inputs = {key: value for key, value in node["inputs"].items() if key not in unknown}
        result[name] = {**node, "inputs": inputs}
    return result


def newer(class_type: str, there: dict[str, Any]) -> list[str]:
    return [name for name in NEWER.get(class_type, ()) if name not in declared(there)]


def choices(kind: Any, options: dict[str, Any]) -> list[Any] | None:
    """What a drop-down offers; None for an input of another kind."""
    if isinstance(kind, list):
        return kind
    if kind == "COMBO":
        return options["options"]
    if kind == "COMFY_DYNAMICCOMBO_V3":
        return [option["key"] for option in options["options"]]
    return None


@pytest.mark.parametrize("stem", STEMS)
def test_the_nodes_exist_and_take_these_inputs(stem, nodes):
    for node in known(api_format(stem), nodes).values():
        class_type, inputs = node["class_type"], node["inputs"]
        assert class_type in nodes
        required = nodes[class_type]["input"].get("required", {})
        assert set(required) <= set(inputs), class_type
        assert set(inputs) <= set(declared(nodes[class_type])), class_type


@pytest.mark.parametrize("stem", STEMS)
def test_links_carry_what_the_input_takes(stem, nodes):
    workflow = api_format(stem)
    for node in workflow.values():
        inputs = declared(nodes[node["class_type"]])
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                source, output = value
                kind = nodes[workflow[source]["class_type"]]["output"][output]
                assert inputs[name][0] == kind, f"{node['class_type']}.{name}"


@pytest.mark.parametrize("stem", STEMS)
def test_values_are_in_range(stem, nodes):
    for node in known(api_format(stem), nodes).values():
        inputs = declared(nodes[node["class_type"]])
        for name, value in node["inputs"].items():
            kind, options = inputs[name]
            where = f"{node['class_type']}.{name} = {value!r}"
            if isinstance(value, list) or name in MODEL_FILES:
                continue
            offered = choices(kind, options)
            if offered is not None:
                assert value in offered, where
                continue
            assert isinstance(value, WIDGET_TYPES[kind]), where
            assert isinstance(value, bool) == (kind == "BOOLEAN"), where
            if kind in ("INT", "FLOAT"):
                low, high = options.get("min", value), options.get("max", value)
                assert low <= value <= high, where


@pytest.mark.parametrize("stem", STEMS)
def test_saved_values_are_in_the_order_of_the_widgets(stem, nodes):
    """A saved workflow lists values by position: an input added in between would shift them."""
    workflow = api_format(stem)
    saved = json.loads((FOLDER / f"{stem}.json").read_text("utf-8"))
    for node in saved["nodes"]:
        if node["type"] not in nodes:  # a note, which the server does not know
            continue
        widgets = []
        for name, (kind, options) in declared(nodes[node["type"]]).items():
            if choices(kind, options) is not None or kind in WIDGET_TYPES:
                widgets.append(name)
                if options.get("control_after_generate"):
                    widgets.append("control_after_generate")
        widgets += newer(node["type"], nodes[node["type"]])
        values = dict(zip(widgets, node["widgets_values"], strict=True))
        values.pop("control_after_generate", None)
        inputs = workflow[str(node["id"])]["inputs"]
        assert values == {name: inputs[name] for name in values}


def test_the_browser_offers_them_as_templates(server):
    templates = server.get("/api/workflow_templates")
    assert sorted(templates["asyncdiff"]) == STEMS
    for stem in STEMS:
        assert server.get(f"/api/workflow_templates/asyncdiff/{stem}.json")["version"] == 0.4


def test_the_demo_runs_as_it_stands(server):
    """It needs no weights but those of the repository: pictures, and the timeline of their run."""
    entry = server.run(api_format("asyncdiff_demo"))
    names = sorted(path.name.split("_")[0] for path in server.files(entry))
    assert names == ["ComfyUI", *["demo"] * 4]  # the timeline is a preview
    [run] = server.get(f"/asyncdiff/report/{entry['prompt'][1]}")["runs"]
    assert run["plan"]["stages"] == 2 and len(run["evaluations"]) == 30


def test_every_template_has_a_thumbnail(server):
    for stem in STEMS:
        picture = server.get_bytes(f"/api/workflow_templates/asyncdiff/{stem}.jpg")
        assert picture.startswith(b"\xff\xd8\xff") and len(picture) < 60_000
