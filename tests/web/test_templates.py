"""ComfyUI's own templates in the browser: parallel in one action, and stock again."""

from __future__ import annotations

import importlib.resources
import json
import os
from typing import Any

from playwright.sync_api import Error

from .browser import Canvas
from .test_graphs import all_local, all_parallel, without_schedules

# One of so many; all of them take three minutes, with ASYNCDIFF_ALL_TEMPLATES=1.
STEP = 1 if os.environ.get("ASYNCDIFF_ALL_TEMPLATES") else 12
SAMPLING = {"KSampler", "KSamplerAdvanced", "SamplerCustom", "BasicGuider", "CFGGuider"}


def templates() -> dict[str, dict[str, Any]]:
    """Workflows by name."""
    folder = importlib.resources.files("comfyui_workflow_templates_json") / "templates"
    found = {}
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".json"):
            content = json.loads(file.read_text("utf-8"))
            if isinstance(content, dict) and "nodes" in content:
                found[file.name] = content
    return found


def test_templates_become_parallel_and_stock_again(page: Canvas) -> None:
    """All that samples goes through a schedule then, and nothing else is changed."""
    all_of_them = templates()
    assert len(all_of_them) > 200
    num_parallel = 0
    unopened = []
    for name, workflow in list(all_of_them.items())[::STEP]:
        try:
            page.load(workflow)
        except Error as error:
            unopened.append((name, str(error)))
            continue
        before = page.exported()
        number = all_parallel(page)
        flow = page.exported()
        assert without_schedules(flow) == before, name
        open_ones = [
            one["class_type"]
            for one in flow.values()
            if one["class_type"] in SAMPLING
            and flow[one["inputs"]["model"][0]]["class_type"] != "AsyncDiffSchedule"
        ]
        assert open_ones == [], name
        if number:
            num_parallel += 1
            all_local(page)
            assert page.exported() == before, name
    assert num_parallel > 100 / STEP
    # A frontend that is newer than its ComfyUI cannot open every one, also without this pack.
    assert len(unopened) <= bool(os.environ.get("ASYNCDIFF_TEST_FRONTEND")), unopened
    print(f"{num_parallel} of {len(all_of_them)} templates, one of {STEP}")
