"""The panel in the sidebar, on a live server."""

from __future__ import annotations

import itertools
import os
import signal
from typing import Any

import pytest
from playwright.sync_api import expect

from demo.workflow import shapes_workflow
from harness import graphs
from harness.comfy_server import ComfyServer
from harness.graphs import Workflow

from .browser import CARDS, PANEL, Canvas

_seeds = itertools.count(1)


def shapes(steps: int, **schedule: Any) -> Workflow:
    """A run on two workers, with a seed of its own, as the browser gets it."""
    flow = shapes_workflow(["two red circles on blue"] * 4, steps=steps, seed=next(_seeds))
    return graphs.asyncdiff(flow, devices="cpu,cpu", **schedule)


def group(server: ComfyServer) -> dict[str, Any]:
    """The demo's workers."""
    (found,) = server.get("/asyncdiff/status")["groups"]
    return found


@pytest.fixture
def warm(lab: ComfyServer) -> None:
    """Two workers that hold the demo's model. They start slowly, so tests share them."""
    if not lab.get("/asyncdiff/status")["groups"]:
        lab.run(shapes(steps=4))


def imagined(num: int, steps: int, **group: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Status and report of `num` workers on GPUs that this machine does not have."""
    workers = [
        {
            **{"rank": rank, "device": f"cuda:{rank}", "pid": 1000 + rank, "replica": 0},
            **{"stage": rank, "lead": 0, "units": [[rank, rank + 1]], "num_units": num},
            **{"unit_names": [[f"blocks.{rank}", f"blocks.{rank}"]], "state": "waiting"},
            "device_name": "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
            **{"weight_bytes": 9 << 30, "shared_bytes": 1 << 20, "resident_bytes": 3 << 30},
            **{
                "waiting_bytes": 0,
                "streamed_bytes": rank << 30,
                "free_bytes": 11 << 30 if rank else None,
            },
            **{"activation_bytes": 5 << 29, "log_file": f"/tmp/worker-{rank}.log"},
        }
        for rank in range(num)
    ]
    plan = {"devices": [w["device"] for w in workers], "stages": num, "replicas": 1, "stride": 1}
    run = {"prompt_id": "one", "node_id": "5", "warm_up": 1, "steps": steps, "evaluations": 0}
    name = "a checkpoint with a name of no use to anybody, but of a considerable length.safetensors"
    one = {"model": "Flux", "files": [name], "state": "sampling", "links": "ring"}
    one |= {"last_error": None, "notes": ["8 replicas x 1 stages do not fit (cuda:0 needs ..)"]}
    one |= {"id": "g1", "plan": plan, "references": 1, "run": {**run, "mode": None}} | group
    spans = [
        {"index": i, "lane": 0, "mode": "sync" if i < 1 else "async", "start": i / 10}
        | {"wait": 0.01, "compute": 0.08, "end": i / 10 + 0.09}
        for i in range(steps)
    ]
    report = {
        **{"prompt_id": "one", "node_id": "5", "model": "Flux", "ended": 100.0, "plan": plan},
        **{"schedule": {"warm_up": 1}, "seconds": steps / 10, "evaluations": [{}] * steps},
        "gain": f"{steps} steps, 1.71x",
        "workers": [{**worker, "spans": spans} for worker in workers],
    }
    last_run = {"prompt_id": "one", "node_id": "5", "ended": 100.0}
    status = {"groups": [{**one, "workers": workers}], "last_run": last_run, "last_errors": []}
    return status, {"runs": [report]}


def test_many_workers_in_a_narrow_panel_and_a_long_run(page: Canvas) -> None:
    """Nothing sticks out, and what is drawn does not grow with the run. The keys zoom."""
    steps = 5000
    status, report = imagined(num=8, steps=steps)
    (group,) = status["groups"]
    status["groups"].append({**group, "id": "g2", "state": "idle", "run": None})
    page.answer("/asyncdiff/status", status)
    page.answer("/asyncdiff/report", report)
    page.open_panel()
    panel = page.page.locator(PANEL)
    cards, bars = page.page.locator(CARDS), panel.locator(".ad-bar")
    expect(cards).to_have_count(16)
    expect(cards.nth(7)).to_contain_text("Activations2.5 GiB")
    expect(cards.nth(7)).to_contain_text("Weights9.0 GiB7.0 GiB in the host's memory")
    expect(cards.nth(7)).to_contain_text("Device11.0 GiB free")
    expect(cards.nth(0)).to_contain_text("Device\u2013")
    expect(panel).to_contain_text("8 replicas x 1 stages do not fit")
    for width in (310, 220):
        panel.evaluate("(panel, width) => (panel.style.width = `${width}px`)", width)
        # The timeline is drawn anew in one of the next frames.
        page.page.wait_for_function(
            """selector => {
                const panel = document.querySelector(selector);
                const { right } = panel.getBoundingClientRect();
                const parts = panel.querySelectorAll(".ad-card, .ad-card *, .ad-group, h3, svg");
                return [...parts].every((one) => one.getBoundingClientRect().right <= right + 1);
            }""",
            arg=PANEL,
        )
    overlaps = panel.evaluate(
        """panel => [...panel.querySelectorAll('.ad-foot')].filter((foot) => {
            const button = foot.querySelector('.ad-button').getBoundingClientRect();
            return [...foot.querySelectorAll('dd, dd *')].some((one) => {
                const range = document.createRange();
                range.selectNodeContents(one);
                const text = range.getBoundingClientRect();
                return text.right > button.left + 1 && text.bottom > button.top + 1;
            });
        }).length"""
    )
    assert overlaps == 0
    expect(bars.first).to_be_visible()
    assert bars.count() < 8 * 310
    assert "to" in (bars.nth(5).locator("title").text_content() or "")

    panel.locator(".ad-timeline").focus()
    for _ in range(16):
        page.page.keyboard.press("+")
    expect(bars.nth(3).locator("title")).not_to_contain_text("to")
    page.page.keyboard.press("ArrowLeft")
    page.page.keyboard.press("Home")
    expect(bars.first.locator("title")).to_contain_text("evaluation 1, synchronous")


def test_what_is_asked_again_and_again(page: Canvas) -> None:
    """A refresh keeps the focus; problems come and go, whatever the clock of the page says."""
    status, report = imagined(num=2, steps=10)
    (group,) = status["groups"]
    error = {"time": 99.0, "model": "Flux", "text": "worker 1 ran out of memory. Its log is /x"}
    page.answer("/asyncdiff/status", {**status, "last_errors": [error]})
    page.answer("/asyncdiff/report", report)
    page.open_panel()
    problem = page.page.locator(f"{PANEL} .ad-problem p")
    log = page.page.locator(CARDS).nth(1).get_by_role("button", name="Open log")
    log.focus()
    expect(problem).to_have_count(0)  # a run ended well after the error
    group["workers"][1]["state"] = "computing"
    page.answer("/asyncdiff/status", {**status, "last_errors": [{**error, "time": 101.0}]})
    expect(page.page.locator(f"{CARDS}[data-state=computing]")).to_have_count(1)
    expect(log).to_be_focused()
    expect(problem).to_have_text("worker 1 ran out of memory.")


def test_comfyui_does_not_answer(page: Canvas) -> None:
    """As while it is started anew: the panel says so, does not invent, and goes on by itself."""
    status, report = imagined(num=2, steps=10)
    (group,) = status["groups"]
    group["run"] = {**group["run"], "evaluations": 4, "mode": "async"}
    group["workers"][0]["state"] = "computing"
    page.answer("/asyncdiff/status", status)
    page.answer("/asyncdiff/report", report)
    page.open_panel()
    panel = page.page.locator(PANEL)
    problem, timeline = panel.locator(".ad-problem p"), panel.locator(".ad-timeline")
    expect(panel.locator(".ad-run h3")).to_have_text("This run")
    page.answer("/asyncdiff/status", None)
    expect(problem).to_have_text(
        "ComfyUI does not answer. The panel goes on by itself when it does."
    )
    expect(panel.locator(".ad-stale .ad-card")).to_have_count(2)
    drawn = timeline.inner_html()
    with page.page.expect_request("**/asyncdiff/status"):
        pass  # it asks again, and draws what it hears
    page.page.wait_for_function(
        "() => new Promise((done) => requestAnimationFrame(() => done(true)))"
    )
    assert timeline.inner_html() == drawn
    page.answer("/asyncdiff/status", {**status, "groups": [], "last_run": None})
    page.answer("/asyncdiff/report", {"runs": []})
    expect(problem).to_have_count(0)
    expect(panel).to_contain_text("No workers")
    expect(panel.locator(".ad-run")).to_be_hidden()


def test_nothing_runs(page: Canvas, lab: ComfyServer) -> None:
    lab.post("/asyncdiff/release", {})
    page.open_panel()
    expect(page.page.locator(PANEL)).to_contain_text("No workers")


# How many evaluations the bars show: a machine that stood still for a while makes some of them so
# narrow that one bar stands for several.
SHOWN = """(kind) => {
    let sum = 0;
    for (const bar of document.querySelectorAll(`.ad-panel .ad-bar${kind}`)) {
        const range = /^evaluations (\\d+) to (\\d+)/.exec(bar.textContent);
        sum += range ? range[2] - range[1] + 1 : 1;
    }
    return sum;
}"""


def test_a_run_moves_and_its_timeline_stays(page: Canvas, warm: None) -> None:
    steps, warm_up = 60, 3
    page.open_panel()
    panel, bars = page.page.locator(PANEL), page.page.locator(f"{PANEL} .ad-bar")
    page.load_api(shapes(steps))
    note_texts(page)
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
    page.page.wait_for_function(f"({SHOWN})('') === {2 * steps}")
    assert page.page.evaluate(SHOWN, ".ad-sync") == 2 * warm_up
    assert page.page.evaluate(SHOWN, ".ad-async") == 2 * (steps - warm_up)
    expect(page.page.locator(CARDS).first).to_contain_text("% busy")

    timeline = panel.locator(".ad-timeline")
    timeline.hover()
    page.page.mouse.wheel(0, -1500)
    page.page.wait_for_function(f"({SHOWN})('') !== {2 * steps}")
    assert 0 < page.page.evaluate(SHOWN, "") < 2 * steps
    timeline.dblclick()
    page.page.wait_for_function(f"({SHOWN})('') === {2 * steps}")

    # In the end the node says what the whole run has gained, or that it has not.
    texts = [told["text"] for told in page.page.evaluate("window.texts")]
    assert any(text.startswith("warm-up ") for text in texts)
    assert texts[-1].startswith(f"{steps} steps, ")
    (sampler,) = page.nodes("AsyncDiffKSampler")
    if not os.environ.get("ASYNCDIFF_TEST_FRONTEND"):
        assert sampler["widgets"]["$$node-text-preview"].startswith(f"{steps} steps, ")
    expect(panel.locator(".ad-run > p").first).to_contain_text(texts[-1])


def note_texts(page: Canvas) -> None:
    """Note what nodes are told to show. Newer pages take it away when the prompt has ended."""
    page.page.evaluate(
        """() => {
            window.texts = [];
            app.api.addEventListener("progress_text", (e) => window.texts.push(e.detail));
        }"""
    )


def test_the_node_of_a_subgraph_says_what_its_sampler_says(page: Canvas, warm: None) -> None:
    page.load_api(shapes(4))
    outer = page.page.evaluate(
        """() => {
            const sampler = app.graph._nodes.find((n) => n.type === "AsyncDiffKSampler");
            return String(app.graph.convertToSubgraph(new Set([sampler])).node.id);
        }"""
    )
    note_texts(page)
    page.run()
    page.page.wait_for_function("() => window.texts.some((one) => one.text.startsWith('4 steps'))")
    texts: dict[str, list[str]] = {}
    for told in page.page.evaluate("window.texts"):
        texts.setdefault(told["nodeId"], []).append(told["text"])
    (inner,) = (node for node in texts if node != outer)
    assert inner.startswith(f"{outer}:")
    assert texts[outer] == texts[inner]


def test_why_a_run_has_gained_nothing_is_told_once(page: Canvas, warm: None) -> None:
    """One whose warm-up is all of it, and a MODEL that stays on one device."""
    page.load_api(shapes(2, warm_up=2))
    page.run()
    page.expect_toast("no gain: the warm-up was all of 2 steps")


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
