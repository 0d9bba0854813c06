"""The translations of the nodes: complete, and of nothing that there is not."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def definitions(language: str) -> dict:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))


def test_languages_say_the_same_things():
    english, chinese = definitions("en"), definitions("zh")
    assert english.keys() == chinese.keys()
    for node_id, node in english.items():
        other = chinese[node_id]
        assert node["inputs"].keys() == other["inputs"].keys()
        assert node["outputs"].keys() == other["outputs"].keys()
        texts = [other["display_name"], other["description"]]
        texts += [
            text for one in other["inputs"].values() for text in (one["name"], one["tooltip"])
        ]
        assert all(texts)


@pytest.mark.parametrize("node_id", sorted(definitions("en")))
def test_every_node_has_a_help_page_with_a_picture(node_id):
    folder = ROOT / "web" / "docs"
    page = (folder / f"{node_id}.md").read_text("utf-8")
    assert f"({node_id}.png)" in page
    assert (folder / f"{node_id}.png").stat().st_size < 150_000
    for name in definitions("en")[node_id]["inputs"]:
        assert f"**{name}**" in page


@pytest.mark.parametrize(
    ("names", "number"),
    [(("devices", "stages", "replicas", "stride"), 3), (("warm_up", "time_shift"), 3)],
    ids=("placement", "schedule"),
)
def test_inputs_that_nodes_share_have_one_text(names, number):
    nodes = [n for n, node in definitions("en").items() if node["inputs"].keys() >= {*names}]
    assert len(nodes) == number
    for name in names:
        tooltips = {definitions("en")[node]["inputs"][name]["tooltip"] for node in nodes}
        pages = [(ROOT / "web" / "docs" / f"{node}.md").read_text("utf-8") for node in nodes]
        # From its name to the next input, or to the end of the list.
        helps = {re.search(rf"^- \*\*{name}\*\*.*?(?=^- |^\n)", p, re.M | re.S)[0] for p in pages}
        assert len(tooltips) == len(helps) == 1
