"""The pictures of the documents, taken of a live server.

    python3 dev.py python -m tests.web.pictures COMFYUI

writes docs/panel-*.jpg (both themes and both renderers of nodes, after a run of the demo's model)
and web/docs/<node>.png. Look at them before they are committed.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import expect, sync_playwright

from demo import shapes
from harness.comfy_server import REPO_ROOT, ComfyServer

from .browser import Canvas, canvas, chromium, launch

DOCS, HELP = REPO_ROOT / "docs", REPO_ROOT / "web" / "docs"
NODES = (
    "AsyncDiffCheckpointLoader",
    "AsyncDiffDiffusionModelLoader",
    "AsyncDiffParallelize",
    "AsyncDiffMotionModule",
    "AsyncDiffMotionLora",
    "AsyncDiffSchedule",
    "AsyncDiffKSampler",
    "AsyncDiffKSamplerAdvanced",
    "AsyncDiffTimeline",
)


# Names that people know, in the choices of the nodes. Nothing loads them.
FILES = (
    "checkpoints/sd_xl_base_1.0.safetensors",
    "diffusion_models/flux1-dev.safetensors",
    "animatediff_models/mm_sd_v15_v2.safetensors",
    "animatediff_motion_lora/v2_lora_PanLeft.ckpt",
)


def make_files(models: Path) -> None:
    for name in FILES:
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        (models / name).touch()


def take_panel(page: Canvas, name: str) -> None:
    """The whole window with the open panel."""
    page.page.wait_for_timeout(2500)  # notices have gone
    picture = Image.open(io.BytesIO(page.page.screenshot()))
    picture.convert("RGB").save(DOCS / f"panel-{name}.jpg", quality=82, optimize=True)


def take_nodes(page: Canvas) -> None:
    """Each node by itself, as classic nodes show it."""
    for type_ in NODES:
        x, y, width, height = page.page.evaluate(
            """async type => {
                app.graph.clear();
                const node = LiteGraph.createNode(type);
                node.pos = [100, 100];
                app.graph.add(node);
                app.canvas.ds.scale = 1;
                app.canvas.ds.offset = [400, 100];
                app.canvas.setDirty(true, true);
                await new Promise((resolve) => setTimeout(resolve, 800));
                const { left, top } = app.canvas.canvas.getBoundingClientRect();
                return [left + 500, top + 200, ...node.size];
            }""",
            type_,
        )
        box = {"x": x - 16, "y": y - 60, "width": width + 32, "height": height + 76}
        page.page.screenshot(path=HELP / f"{type_}.png", clip=box)


def demo_workflow(seed: int) -> dict[str, Any]:
    """The demo's template. Another seed each time, or ComfyUI answers from its cache."""
    file = REPO_ROOT / "workflows" / "asyncdiff_demo.json"
    workflow = json.loads(file.read_text("utf-8"))
    (sampler,) = (n for n in workflow["nodes"] if n["type"] == "AsyncDiffKSampler")
    sampler["widgets_values"][0] = seed
    return workflow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comfyui", type=Path)
    comfyui = parser.parse_args().comfyui
    executable = chromium()
    if executable is None:
        parser.error("there is no Chromium on the search path")
    with (
        tempfile.TemporaryDirectory() as folder,
        ComfyServer(comfyui, Path(folder), args=["--cpu"], more_packs=[shapes.PACK]) as server,
        sync_playwright() as playwright,
    ):
        browser = launch(playwright, executable)
        for is_vue in (False, True):
            with canvas(browser, server) as page:
                page.open(Comfy_VueNodes_Enabled=is_vue, Comfy_ColorPalette="dark")
                page.load(demo_workflow(seed=1 + is_vue))
                page.run()
                # The browser draws an open panel on the processors that the workers need.
                while len(server.get("/asyncdiff/report")["runs"]) <= is_vue:
                    page.page.wait_for_timeout(1000)
                page.open_panel()
                expect(page.page.locator(".ad-run h3")).to_have_text("Last run", timeout=120e3)
                renderer = "vue" if is_vue else "classic"
                for theme in ("dark", "light"):
                    page.set("Comfy.ColorPalette", theme)
                    take_panel(page, f"{theme}-{renderer}")
                page.set("Comfy.ColorPalette", "dark")
                if not is_vue:
                    page.page.wait_for_timeout(500)
                    make_files(server.models)
                    page.open(Comfy_ColorPalette="dark")  # a page asks for the choices at first
                    take_nodes(page)
        browser.close()


if __name__ == "__main__":
    main()
