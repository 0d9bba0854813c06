"""What a person does on the canvas: open workflows, choose devices, make a graph parallel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from harness.graphs import node

from .browser import Canvas

FOLDER = Path(__file__).parents[2] / "workflows"
STEMS = sorted(path.stem for path in FOLDER.glob("*.json"))

# As ComfyUI's own template of SDXL has it, but for its values.
SCHEDULE = {
    "warm_up": 0,
    "time_shift": False,
    "prediction": "auto",
    "cool_down": 0,
    "tolerance": 0,
    "split_batch": False,
}
STOCK = {
    "1": node("CheckpointLoaderSimple", ckpt_name="tiny-sd15.safetensors"),
    "2": node("CLIPTextEncode", clip=["1", 1], text="a fox"),
    "3": node("CLIPTextEncode", clip=["1", 1], text="text"),
    "4": node("EmptyLatentImage", width=1024, height=1024, batch_size=1),
    "5": node(
        "KSampler",
        **{"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]},
        **{"seed": 7, "steps": 25, "cfg": 6.5, "sampler_name": "dpmpp_2m", "scheduler": "karras"},
        denoise=0.9,
    ),
    "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
    "7": node("SaveImage", images=["6", 0], filename_prefix="sdxl"),
}


def saved(stem: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{stem}.json").read_text("utf-8"))


@pytest.mark.parametrize("is_vue", [False, True], ids=["classic", "vue"])
def test_every_workflow_opens(page: Canvas, is_vue: bool) -> None:
    """No node is missing, and the values stand where they were saved."""
    page.set("Comfy.VueNodes.Enabled", is_vue)
    for stem in STEMS:
        workflow = saved(stem)
        page.load(workflow)
        types = page.page.evaluate(
            "() => app.graph._nodes.map((node) => [node.type, node.has_errors ?? false,"
            " LiteGraph.registered_node_types[node.type] !== undefined])"
        )
        assert sorted(t for t, *_ in types) == sorted(n["type"] for n in workflow["nodes"])
        assert all(known or t == "MarkdownNote" for t, _, known in types), stem
        for saved_node in workflow["nodes"]:
            if saved_node["type"].startswith("AsyncDiff"):
                (found,) = page.nodes(saved_node["type"])
                assert found["saved"] == saved_node["widgets_values"], stem
    assert not page.errors


@pytest.mark.parametrize("is_vue", [False, True], ids=["classic", "vue"])
def test_devices_of_another_machine_are_told_and_can_be_chosen_anew(
    page: Canvas, is_vue: bool
) -> None:
    page.set("Comfy.VueNodes.Enabled", is_vue)
    workflow = saved("asyncdiff_sd15")
    (loader,) = (n for n in workflow["nodes"] if n["type"] == "AsyncDiffCheckpointLoader")
    loader["widgets_values"][1] = "cuda:3,cpu"
    loader["widgets_values"][2:] = [2, 1, 1]
    page.load(workflow)
    page.wait_for_label("AsyncDiffCheckpointLoader", "⚠ no cuda:3 here: auto")
    assert placement(page.queued()) == {"devices": "auto", "stages": 0, "replicas": 0, "stride": 1}
    (found,) = page.nodes("AsyncDiffCheckpointLoader")
    # For the machine that it came from:
    assert found["saved"][1:] == ["cuda:3,cpu", 2, 1, 1]
    assert placement(page.exported())["devices"] == "cuda:3,cpu"
    page.click_last_widget("AsyncDiffCheckpointLoader", is_vue)
    menu = page.page.locator(".litecontextmenu")
    expect(menu).to_contain_text("auto: cpu, cpu")
    expect(menu).to_contain_text("Twice cpu (CPU, ")
    menu.locator(".litemenu-entry", has_text="Twice cpu").click()
    page.wait_for_label("AsyncDiffCheckpointLoader", "Choose devices")
    (found,) = page.nodes("AsyncDiffCheckpointLoader")
    assert found["saved"] == ["v1-5-pruned-emaonly-fp16.safetensors", "cpu,cpu", 2, 1, 1]
    assert placement(page.queued()) == {
        "devices": "cpu,cpu",
        "stages": 2,
        "replicas": 1,
        "stride": 1,
    }


def test_devices_from_another_node_are_replaced_too(page: Canvas) -> None:
    """What a linked node or a subgraph gives is known only when the graph is queued."""
    loader = {"ckpt_name": "tiny-sd15.safetensors", "stages": 3, "replicas": 1, "stride": 1}
    flow = {
        "1": node("PrimitiveString", value="cuda:0,cuda:5,cpu"),
        "2": node("AsyncDiffCheckpointLoader", **loader, devices=["1", 0]),
    }
    page.load_api(flow)
    page.page.evaluate(
        """() => {
            const loader = app.graph._nodes.find((n) => n.type === "AsyncDiffCheckpointLoader");
            const { subgraph, node } = app.graph.convertToSubgraph(new Set([loader]));
            const outer = app.graph._nodes.find((n) => n.type === "PrimitiveString");
            app.graph.remove(outer);
            node.widgets.find((w) => w.name === "devices").value = "cuda:0,cuda:5,cpu";
        }"""
    )
    assert placement(page.queued()) == {"devices": "auto", "stages": 0, "replicas": 0, "stride": 1}
    expect(page.page.locator(".p-toast-message")).to_contain_text("no cuda:0, cuda:5 here: auto")


def placement(flow: dict[str, Any]) -> dict[str, Any]:
    """The placement of the only loader of `flow`."""
    (loader,) = (n for n in flow.values() if n["class_type"] == "AsyncDiffCheckpointLoader")
    return {key: value for key, value in loader["inputs"].items() if key != "ckpt_name"}


def test_the_text_of_devices_survives(page: Canvas) -> None:
    """Copy and paste, undo, a link and its end, a subgraph that shows the widget in the old way."""
    type_, text, values = "AsyncDiffCheckpointLoader", "cuda:3,cpu", ["cuda:3,cpu", 2, 1, 1]
    loader = node(type_, ckpt_name="tiny-sd15.safetensors", devices=text)
    loader["inputs"] |= {"stages": 2, "replicas": 1, "stride": 1}
    page.load_api({"1": loader})
    page.wait_for_label(type_, "⚠ no cuda:3 here: auto")

    def expect_texts(number: int) -> None:
        assert [found["saved"][1:] for found in page.nodes(type_)] == [values] * number

    page.page.evaluate("app.canvas.selectItems(app.graph._nodes)")
    page.page.locator("#graph-canvas").focus()
    for key, number in (("c", 1), ("v", 2), ("z", 1), ("y", 2), ("z", 1)):
        page.press_until_recorded(f"Control+{key}", number, times=3 if key in "zy" else 1)
        expect_texts(number)

    page.page.evaluate(
        """type => {
            const loader = app.graph._nodes.find((n) => n.type === type);
            const giver = app.graph.add(LiteGraph.createNode("PrimitiveNode"));
            giver.connect(0, loader, loader.findInputSlot("devices"));
        }""",
        type_,
    )
    page.wait_for_label(type_, "Devices come from a link")
    assert placement(page.exported())["devices"] == text
    page.page.evaluate(
        "() => app.graph.remove(app.graph._nodes.find((n) => n.type === 'PrimitiveNode'))"
    )
    page.wait_for_label(type_, "⚠ no cuda:3 here: auto")
    page.wait_for_recorded(1)
    expect_texts(1)

    workflow = page.page.evaluate(
        """() => {
            const { node } = app.graph.convertToSubgraph(new Set([...app.graph._nodes]));
            const workflow = app.graph.serialize();
            workflow.nodes[0].properties.proxyWidgets = [["1", "devices"], ["1", "choose_devices"]];
            workflow.nodes[0].widgets_values = ["cuda:4,cuda:5", null];
            return workflow;
        }"""
    )
    page.load(workflow)
    again = page.page.evaluate("() => app.graph.serialize()")
    page.load(again)
    assert again["nodes"][0]["widgets_values"] == ["cuda:4,cuda:5"]
    assert placement(page.exported())["devices"] == "cuda:4,cuda:5"
    inner = page.page.evaluate(
        """async () => {
            const [loader] = app.graph._nodes[0].subgraph._nodes;
            for (let i = 0; i < 100 && !loader.widgets.at(-1).label.includes("link"); i += 1)
                await new Promise((resolve) => setTimeout(resolve, 50));
            return [loader.widgets.at(-1).label, loader.serialize().widgets_values.slice(1)];
        }"""
    )
    assert inner == ["Devices come from a link", values]


def test_two_clicks_make_a_stock_graph_parallel(page: Canvas) -> None:
    page.load_api(STOCK)
    page.page.wait_for_timeout(500)  # until the canvas has come to rest
    page.right_click_title("KSampler")
    menu = page.page.locator(".litecontextmenu, [role=menu]").first
    menu.get_by_text("Make parallel (AsyncDiff)").click()

    flow = page.exported()
    assert sorted(n["class_type"] for n in flow.values() if "Sampler" in n["class_type"]) == [
        "AsyncDiffKSampler"
    ]
    (new,) = (n for n in flow.values() if n["class_type"] == "AsyncDiffKSampler")
    assert new["inputs"] == {**STOCK["5"]["inputs"], **SCHEDULE}
    (decode,) = (n for n in flow.values() if n["class_type"] == "VAEDecode")
    assert flow[decode["inputs"]["samples"][0]] is new


def test_a_sampler_in_a_subgraph_becomes_parallel(page: Canvas) -> None:
    """Its links go to the borders of the subgraph."""
    page.load_api(STOCK)
    page.page.evaluate(
        """async () => {
            const stock = app.graph._nodes.find((n) => n.type === "KSampler");
            const { subgraph } = app.graph.convertToSubgraph(new Set([stock]));
            const inside = subgraph._nodes.find((n) => n.type === "KSampler");
            const { makeParallel } = await import("/extensions/asyncdiff/parallel.js");
            makeParallel(inside);
        }"""
    )
    flow = page.exported()
    (new,) = (n for n in flow.values() if n["class_type"] == "AsyncDiffKSampler")
    assert new["inputs"] == {**STOCK["5"]["inputs"], **SCHEDULE}
    (decode,) = (n for n in flow.values() if n["class_type"] == "VAEDecode")
    assert flow[decode["inputs"]["samples"][0]] is new
