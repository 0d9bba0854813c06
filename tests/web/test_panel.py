"""The panel in the sidebar, on a live server."""

from __future__ import annotations

import itertools
import os
import signal
from typing import Any

import pytest
from playwright.sync_api import expect

from demo import graphs
from demo.comfy_server import ComfyServer
from demo.graphs import Workflow

from .browser import CARDS, PANEL, Canvas

_seeds = itertools.count(1)


def shapes(steps: int) -> Workflow:
    """A run on two workers, with a seed of its own, as the browser gets it."""
    flow = graphs.shapes(["two red circles on blue"] * 4, steps=steps, seed=next(_seeds))
    return graphs.asyncdiff(flow, devices="cpu,cpu")


def group(server: ComfyServer) -> dict[str, Any]:
    """The demo's workers."""
    (found,) = server.get("/asyncdiff/status")["groups"]
    return found


@pytest.fixture
def warm(lab: ComfyServer) -> None:
    """Two workers that hold the demo's model. They start slowly, so tests share them."""
    if not lab.get("/asyncdiff/status")["groups"]:
        lab.run(shapes(steps=4))


def test_nothing_runs(page: Canvas, lab: ComfyServer) -> None:
    lab.post("/asyncdiff/release", {})
    page.open_panel()
    expect(page.page.locator(PANEL)).to_contain_text("No workers")


def test_a_run_moves_and_its_timeline_stays(page: Canvas, warm: None) -> None:
    steps, warm_up = 60, 3
    page.open_panel()
    panel, bars = page.page.locator(PANEL), page.page.locator(f"{PANEL} .ad-bar")
    page.load_api(shapes(steps))
    page.run()
    expect(panel.locator(".ad-phase")).to_contain_text("async", timeout=60e3)
    title = panel.locator(".ad-run h3")
    expect(title).to_have_text("This run")
    expect(page.page.locator(CARDS)).to_have_count(2)
    expect(page.page.locator(f"{CARDS}[data-state=computing]").first).to_be_visible()
    drawn, phase = bars.count(), panel.locator(".ad-phase").text_content()
    page.page.wait_for_function(
        "([drawn, phase]) => document.querySelectorAll('.ad-bar').length > drawn &&"
        " document.querySelector('.ad-phase').textContent !== phase",
        arg=[drawn, phase],
    )

    expect(title).to_have_text("Last run", timeout=60e3)
    expect(bars).to_have_count(2 * steps)
    assert panel.locator(".ad-bar.ad-sync").count() == 2 * warm_up
    assert panel.locator(".ad-bar.ad-async").count() == 2 * (steps - warm_up)
    expect(page.page.locator(CARDS).first).to_contain_text("% busy")

    timeline = panel.locator(".ad-timeline")
    timeline.hover()
    page.page.mouse.wheel(0, -1500)
    expect(bars).not_to_have_count(2 * steps)
    assert 0 < bars.count() < 2 * steps
    timeline.dblclick()
    expect(bars).to_have_count(2 * steps)

    (sampler,) = page.nodes("AsyncDiffKSampler")
    assert sampler["widgets"]["$$node-text-preview"].startswith(f"async {steps - warm_up}/")


def test_the_log_of_a_worker(page: Canvas, lab: ComfyServer, warm: None) -> None:
    page.open_panel()
    with page.page.expect_popup() as popup:
        page.page.locator(CARDS).nth(1).get_by_role("button", name="Open log").click()
    assert popup.value.url.endswith(f"/asyncdiff/log/{group(lab)['id']}/1")


def test_release_ends_the_workers(page: Canvas, lab: ComfyServer, warm: None) -> None:
    pids = [worker["pid"] for worker in group(lab)["workers"]]
    page.open_panel()
    page.page.get_by_role("button", name="Release").click()
    expect(page.page.locator(PANEL)).to_contain_text("No workers")
    assert lab.get("/asyncdiff/status")["groups"] == []
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_that_dies_is_told_in_a_sentence(
    page: Canvas, lab: ComfyServer, warm: None
) -> None:
    page.open_panel()
    page.load_api(shapes(steps=200))
    page.run()
    panel = page.page.locator(PANEL)
    expect(panel.locator(".ad-phase")).to_contain_text("async", timeout=60e3)
    os.kill(group(lab)["workers"][1]["pid"], signal.SIGKILL)
    problem = panel.locator(".ad-problem p")
    expect(problem).to_contain_text("worker 1 on cpu was ended by signal SIGKILL", timeout=30e3)
    expect(problem).not_to_contain_text("log")  # whose path helps nobody here
    log = panel.locator(".ad-problem").get_by_role("button", name="Open log")
    with page.page.expect_popup() as popup:
        log.click()
    assert popup.value.url.endswith(f"/asyncdiff/log/{group(lab)['id']}/1")
    panel.get_by_title("Dismiss").click()
    expect(problem).to_have_count(0)
