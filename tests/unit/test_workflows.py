"""The workflow files: what the browser loads and what the API takes describe the same graph."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "workflows"
STEMS = sorted(path.stem for path in FOLDER.glob("*.json"))

# The browser adds a widget behind a seed, which says how the seed changes after a run.
SEEDS = ("seed", "noise_seed")
SEED_CONTROLS = ("fixed", "increment", "decrement", "randomize")
NODE_TITLE_HEIGHT = 30  # drawn above a node's position


def read(stem: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A workflow as the browser saves it, and in the API format."""
    ui, api = FOLDER / f"{stem}.json", FOLDER / "api" / f"{stem}.json"
    return json.loads(ui.read_text("utf-8")), json.loads(api.read_text("utf-8"))


def real_nodes(ui: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The nodes that the server runs, by their id in the API format; notes are not among them."""
    return {str(node["id"]): node for node in ui["nodes"] if node["type"] != "MarkdownNote"}


def is_link(value: Any) -> bool:
    return isinstance(value, list)


def test_every_workflow_has_a_twin():
    models = (
        *("demo", "flux", "flux2_klein", "ltx2_t2v", "minimax_h3_t2v", "qwen_image", "sd15"),
        *("sd3", "sdxl", "sdxl_lora_controlnet", "svd", "wan22_t2v", "wan_t2v", "z_image_turbo"),
    )
    assert [f"asyncdiff_{model}" for model in models] == STEMS
    assert sorted(path.stem for path in (FOLDER / "api").glob("*.json")) == STEMS


@pytest.mark.parametrize("stem", STEMS)
def test_same_nodes(stem):
    ui, api = read(stem)
    types = {node_id: node["type"] for node_id, node in real_nodes(ui).items()}
    assert types == {node_id: node["class_type"] for node_id, node in api.items()}


@pytest.mark.parametrize("stem", STEMS)
def test_same_links(stem):
    ui, api = read(stem)
    nodes = real_nodes(ui)
    from_ui = {
        (str(target), nodes[str(target)]["inputs"][slot]["name"], str(source), output)
        for _, source, output, target, slot, _ in ui["links"]
    }
    from_api = {
        (node_id, name, *value)
        for node_id, node in api.items()
        for name, value in node["inputs"].items()
        if is_link(value)
    }
    assert from_ui == from_api


@pytest.mark.parametrize("stem", STEMS)
def test_same_values(stem):
    """A saved workflow lists the values of a node's widgets by position, the API by name."""
    ui, api = read(stem)
    for node_id, node in real_nodes(ui).items():
        values = iter(node["widgets_values"])
        for name, expected in api[node_id]["inputs"].items():
            if is_link(expected):
                continue
            assert next(values) == expected, f"{node['type']}.{name}"
            if name in SEEDS:
                assert next(values) in SEED_CONTROLS
        assert not list(values)


@pytest.mark.parametrize("stem", STEMS)
def test_links_are_noted_at_both_ends(stem):
    ui, _ = read(stem)
    nodes = {node["id"]: node for node in ui["nodes"]}
    for link, source, output, target, slot, kind in ui["links"]:
        start, end = nodes[source]["outputs"][output], nodes[target]["inputs"][slot]
        assert link in start["links"] and link == end["link"]
        assert start["type"] == end["type"] == kind
    ends = [slot["link"] for node in ui["nodes"] for slot in node["inputs"]]
    assert sorted(link for link in ends if link) == sorted(link[0] for link in ui["links"])
    assert ui["last_link_id"] == max(link[0] for link in ui["links"])
    assert ui["last_node_id"] == max(nodes)


@pytest.mark.parametrize("stem", STEMS)
def test_nodes_run_in_the_order_of_their_links(stem):
    ui, _ = read(stem)
    order = {node["id"]: node["order"] for node in ui["nodes"]}
    assert sorted(order.values()) == list(range(len(order)))
    assert all(order[source] < order[target] for _, source, _, target, _, _ in ui["links"])


def test_one_version_everywhere():
    """The project file's: in the workflows, and the newest one in the changelog."""
    project, changes = (
        (FOLDER.parent / n).read_text("utf-8") for n in ("pyproject.toml", "CHANGELOG.md")
    )
    [version] = re.findall(r'^version = "(.*)"$', project, re.MULTILINE)
    assert re.findall(r"^## \[(.*?)\]", changes, re.MULTILINE)[0] == version
    for stem in STEMS:
        ours = [n for n in read(stem)[0]["nodes"] if n["type"].startswith("AsyncDiff")]
        assert {n["properties"]["ver"] for n in ours} == {version}, stem


@pytest.mark.parametrize("stem", STEMS)
def test_nothing_overlaps(stem):
    ui, _ = read(stem)

    def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        (x, y, width, height), (left, top, across, down) = one, other
        return x < left + across and left < x + width and y < top + down and top < y + height

    nodes = {}
    for node in ui["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        nodes[node["type"], node["id"]] = (x, y - NODE_TITLE_HEIGHT, width, height)
    boxes = nodes | {group["title"]: tuple(group["bounding"]) for group in ui["groups"]}
    for one, other in combinations(boxes, 2):
        if (one in nodes) == (other in nodes):
            assert not overlap(boxes[one], boxes[other]), f"{one} and {other}"


@pytest.mark.parametrize("stem", STEMS)
def test_a_note_says_in_three_lines_what_it_does_and_where_the_models_are(stem):
    ui, _ = read(stem)
    [note] = [node for node in ui["nodes"] if node["type"] == "MarkdownNote"]
    lines, _, links = note["widgets_values"][0].partition("\n\n")
    assert len(lines.splitlines()) == 3
    models = [model for node in ui["nodes"] for model in node["properties"].get("models", ())]
    assert len(links.splitlines()) == len(models)
    for model, link in zip(models, links.splitlines(), strict=True):
        file = model["url"].split("?")[0].rsplit("/")[-1]
        assert f"[{file}]({model['url']}) goes into `models/{model['directory']}`" in link
        assert model["name"] in link
