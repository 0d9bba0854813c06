"""The English texts of the locale files are those of the nodes, and the server serves them all."""

import json
from pathlib import Path

LOCALES = Path(__file__).parents[2] / "locales"


def test_english_is_what_the_nodes_say(server):
    english = json.loads((LOCALES / "en" / "nodeDefs.json").read_text("utf-8"))
    nodes = {k: v for k, v in server.get("/object_info").items() if k.startswith("AsyncDiff")}
    assert english.keys() == nodes.keys()
    for node_id, node in nodes.items():
        text = english[node_id]
        assert text["display_name"] == node["display_name"]
        assert text["description"] == node["description"]
        assert node["search_aliases"]
        inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        assert text["inputs"] == {
            name: {"name": name, "tooltip": options["tooltip"]}
            for name, (_, options) in inputs.items()
        }
        names = [output["name"] for output in text["outputs"].values()]
        assert names == node["output_name"]


def test_chinese_has_every_text_that_english_has():
    def keys(texts):
        return {k: keys(v) for k, v in texts.items()} if isinstance(texts, dict) else None

    for kind in ("nodeDefs", "commands"):
        english, chinese = (
            json.loads((LOCALES / language / f"{kind}.json").read_text("utf-8"))
            for language in ("en", "zh")
        )
        assert keys(chinese) == keys(english)


def test_the_browser_gets_both_languages(server):
    texts = server.get("/i18n")
    for language in ("en", "zh"):
        for kind in ("nodeDefs", "commands"):
            expected = json.loads((LOCALES / language / f"{kind}.json").read_text("utf-8"))
            assert texts[language][kind].items() >= expected.items()
