"""What a person does on the canvas: open workflows, choose devices, make a graph parallel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

import dev
from harness.comfy_server import PACK_FOLDER
from harness.graphs import node

from .browser import PANEL, Canvas

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
                found = {str(one["id"]): one["saved"] for one in page.nodes(saved_node["type"])}
                assert found[str(saved_node["id"])] == saved_node["widgets_values"], stem
    assert not page.errors


def test_the_address_that_dev_py_serve_prints_opens_the_demonstration(page: Canvas) -> None:
    page.page.goto(dev.opened(page.server.url, "asyncdiff_demo", PACK_FOLDER))
    page.page.wait_for_function(
        "() => window.app?.graph?._nodes.some((node) => node.type.startsWith('AsyncDiff'))"
    )
    types = page.page.evaluate("() => app.graph._nodes.map((node) => node.type)")
    assert sorted(types) == sorted(one["type"] for one in saved("asyncdiff_demo")["nodes"])
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
    page.expect_toast("no cuda:0, cuda:5 here: auto")


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

    page.wait_for_rest()
    page.page.evaluate("app.canvas.selectItems(app.graph._nodes)")
    for key, number in (("c", 1), ("v", 2), ("z", 1), ("y", 2), ("z", 1)):
        page.press_until_recorded(f"Control+{key}", number, times=3)
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
            app.graph.convertToSubgraph(new Set([...app.graph._nodes]));
            const workflow = JSON.parse(JSON.stringify(app.graph.serialize()));
            workflow.nodes[0].properties.proxyWidgets = [["1", "devices"], ["1", "choose_devices"]];
            workflow.nodes[0].widgets_values = ["cuda:4,cuda:5", null];
            return workflow;
        }"""
    )
    page.load(workflow)
    again = page.saved()
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
    page.wait_for_rest()
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


PARALLEL = '(await import("/extensions/asyncdiff/parallel.js"))'

# A sampler of ComfyUI's custom kind, and two KSamplers that share a MODEL, one of them refining.
CUSTOM = {
    **STOCK,
    "8": node("KSampler", **{**STOCK["5"]["inputs"], "latent_image": ["5", 0], "denoise": 0.4}),
    "9": node("LoraLoaderModelOnly", model=["1", 0], lora_name="none", strength_model=1.0),
    "10": node("BasicGuider", model=["9", 0], conditioning=["2", 0]),
    "11": node("BasicScheduler", model=["9", 0], scheduler="simple", steps=20, denoise=1.0),
    "12": node("RandomNoise", noise_seed=1),
    "13": node("KSamplerSelect", sampler_name="euler"),
    "14": node(
        "SamplerCustomAdvanced",
        **{"noise": ["12", 0], "guider": ["10", 0], "sampler": ["13", 0], "sigmas": ["11", 0]},
        latent_image=["8", 0],
    ),
    "15": node("VAEDecode", samples=["14", 0], vae=["1", 2]),
    "16": node("SaveImage", images=["15", 0], filename_prefix="custom"),
    "17": node("SaveImage", images=["6", 0], filename_prefix="sdxl"),
}


def all_parallel(page: Canvas) -> int:
    """Make the whole workflow parallel, as the menu does; how many nodes that was for."""
    return page.page.evaluate(f"async () => {PARALLEL}.makeAllParallel(app.graph)")


def all_local(page: Canvas) -> int:
    return page.page.evaluate(f"async () => {PARALLEL}.makeAllLocal(app.graph)")


def click_menu(page: Canvas, entry: str) -> None:
    """Click an entry of the canvas's own menu."""
    page.wait_for_rest()
    page.page.mouse.click(200, 450, button="right")
    page.page.get_by_text(entry).click()


def without_schedules(flow: dict[str, Any]) -> dict[str, Any]:
    """The same workflow with what comes before each schedule in its place."""
    models = {
        key: one["inputs"]["model"]
        for key, one in flow.items()
        if one["class_type"] == "AsyncDiffSchedule"
    }
    return {
        key: {
            **one,
            "inputs": {
                name: models.get(value[0], value) if isinstance(value, list) else value
                for name, value in one["inputs"].items()
            },
        }
        for key, one in flow.items()
        if key not in models
    }


def test_a_whole_workflow_becomes_parallel_and_stock_again(page: Canvas) -> None:
    page.load_api(CUSTOM)
    before = page.exported()
    links = page.page.evaluate("() => app.graph.links.size")
    # Some files say that their last link had a smaller number than it has.
    page.page.evaluate("() => { app.graph.state.lastLinkId = 2; }")
    click_menu(page, "Make the whole workflow parallel (AsyncDiff)")
    flow = page.exported()
    schedules = [n for n in flow.values() if n["class_type"] == "AsyncDiffSchedule"]
    assert sorted(one["inputs"]["model"][0] for one in schedules) == ["1", "9"]
    assert all(one["inputs"] == {"model": one["inputs"]["model"], **SCHEDULE} for one in schedules)
    assert without_schedules(flow) == before
    sampled = {name for name in ("5", "8", "10") if flow[name]["inputs"]["model"][0] in flow}
    assert sampled == {"5", "8", "10"}
    for name in ("5", "8", "10"):
        assert flow[flow[name]["inputs"]["model"][0]]["class_type"] == "AsyncDiffSchedule"
    assert flow["11"]["inputs"]["model"] == ["9", 0]  # it samples nothing
    # Right above their samplers, and on no other node.
    overlaps = page.page.evaluate(
        """() => {
            const boxes = app.graph._nodes.map((n) => [n.type, ...n.boundingRect]);
            return boxes.filter(([type]) => type === "AsyncDiffSchedule").flatMap(
                (ours) => boxes.filter((other) => other !== ours
                    && [1, 2].every((i) => ours[i] < other[i] + other[i + 2]
                        && other[i] < ours[i] + ours[i + 2])));
        }"""
    )
    assert overlaps == []
    assert all_parallel(page) == 0
    page.wait_for_recorded(len(CUSTOM) + 2)
    page.page.locator("#graph-canvas").focus()
    page.press_until_recorded("Control+z", len(CUSTOM), times=3)
    assert page.exported() == before

    all_parallel(page)
    assert all_local(page) == 2
    assert page.exported() == before
    assert page.page.evaluate("() => app.graph.links.size") == links
    assert all_local(page) == 0


def test_samplers_in_subgraphs_become_parallel_and_stock_again(page: Canvas) -> None:
    """The MODEL comes over the border, and the subgraph stands twice in the graph."""
    page.load_api(CUSTOM)
    page.page.evaluate(
        """() => {
            const chosen = app.graph._nodes.filter((n) => ["5", "10"].includes(String(n.id)));
            for (const node of chosen) app.graph.convertToSubgraph(new Set([node]));
        }"""
    )
    before = page.exported()
    assert all_parallel(page) == 3
    flow = page.exported()
    assert without_schedules(flow) == before
    for one in flow.values():
        if one["class_type"] in ("KSampler", "BasicGuider"):
            origin = flow[one["inputs"]["model"][0]]
            assert origin["class_type"] == "AsyncDiffSchedule"
    assert all_parallel(page) == 0
    assert all_local(page) == 3
    assert page.exported() == before


def test_a_schedule_alone_in_a_subgraph_leaves_its_way(page: Canvas) -> None:
    """From border to border: the MODEL still goes through when the schedule is taken out."""
    page.load_api(CUSTOM)
    before = page.exported()
    assert all_parallel(page) == 3
    page.page.evaluate(
        """() => {
            for (const node of app.graph._nodes.filter((n) => n.type === "AsyncDiffSchedule"))
                app.graph.convertToSubgraph(new Set([node]));
        }"""
    )
    assert without_schedules(page.exported()) == before
    assert all_local(page) == 2
    assert page.exported() == before


def test_nodes_of_this_pack_become_stock_ones(page: Canvas) -> None:
    page.load(saved("asyncdiff_sdxl"))
    assert all_local(page) == 2
    flow = page.exported()
    kinds = sorted(one["class_type"] for one in flow.values())
    assert not any(kind.startswith("AsyncDiff") for kind in kinds)
    assert {"CheckpointLoaderSimple", "KSampler"} <= set(kinds)
    (found,) = (one for one in flow.values() if one["class_type"] == "KSampler")
    for name in ("model", "positive", "negative", "latent_image"):
        assert found["inputs"][name][0] in flow
    assert all_parallel(page) == 1


@pytest.mark.parametrize("is_vue", [False, True], ids=["classic", "vue"])
def test_two_clicks_make_any_sampler_parallel(page: Canvas, is_vue: bool) -> None:
    page.set("Comfy.VueNodes.Enabled", is_vue)
    page.load_api(CUSTOM)
    page.wait_for_rest()
    page.right_click_title("BasicGuider")
    page.page.get_by_text("Make parallel (AsyncDiff)").click()
    flow = page.exported()
    assert flow[flow["10"]["inputs"]["model"][0]]["class_type"] == "AsyncDiffSchedule"


def test_two_clicks_make_the_whole_workflow_parallel(page: Canvas) -> None:
    """From the canvas's menu, and from the panel."""
    page.load_api(CUSTOM)
    click_menu(page, "Make the whole workflow parallel (AsyncDiff)")
    page.expect_toast("3 nodes sample in parallel now")
    click_menu(page, "Back to stock nodes (AsyncDiff)")
    page.expect_toast("2 nodes of AsyncDiff taken out")
    assert page.nodes("AsyncDiffSchedule") == []
    page.open_panel()
    page.page.locator(f"{PANEL} .ad-title button").click()
    assert len(page.nodes("AsyncDiffSchedule")) == 2
