"""A headless Chromium on a live server's page, and what can be done there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Error,
    Page,
    Playwright,
    Route,
    TimeoutError,
    expect,
)

from harness.comfy_server import PACK_FOLDER, ComfyServer

FLAGS = (
    "--no-sandbox",  # a container has no other user to run as
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

SETTINGS = {
    "Comfy.TutorialCompleted": True,  # no templates over the first graph
    "Comfy.UseNewMenu": "Top",
    "Comfy.Minimap.Visible": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,  # the models of the workflows are not here
    "Comfy.VueNodes.AutoScaleLayout": False,
}

PANEL = ".ad-panel"
CARDS = f"{PANEL} .ad-card"


def chromium() -> str | None:
    """A Chromium of the system; none is ever fetched."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


def launch(playwright: Playwright, executable: str) -> Browser:
    return playwright.chromium.launch(executable_path=executable, args=list(FLAGS))


class Canvas:
    """ComfyUI's page. `errors` has what this pack's modules, or nobody, wrote to the console."""

    def __init__(self, page: Page, server: ComfyServer) -> None:
        self.page = page
        self.server = server
        self.errors: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", self._on_page_error)

    def open(self, **settings: Any) -> Canvas:
        """Load the page; settings by their names with `_` for the dot."""
        for name, value in (
            SETTINGS.items()
            | {key.replace("_", "."): value for key, value in settings.items()}.items()
        ):
            self.server.post(f"/settings/{name}", value)
        self.page.goto(self.server.url)
        self.page.wait_for_function(
            "window.app?.extensionManager && window.app.graph", timeout=60e3
        )
        self.page.wait_for_selector("[aria-label*='AsyncDiff']")
        return self

    def set(self, name: str, value: Any) -> None:
        """Change a setting of the open page."""
        self.page.evaluate(
            "([name, value]) => app.extensionManager.setting.set(name, value)", [name, value]
        )

    def open_panel(self) -> None:
        if not self.page.locator(PANEL).count():
            self.page.click("[aria-label*='AsyncDiff']")
        self.page.wait_for_selector(PANEL)

    def load(self, workflow: dict[str, Any]) -> None:
        """Open a workflow as the browser saves it."""
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)

    def load_api(self, flow: dict[str, Any]) -> None:
        """Open a workflow in the API format."""
        self.page.evaluate("flow => app.loadApiJson(flow, 'test')", flow)

    def answer(self, path: str, body: Any) -> None:
        """Have the server seem to answer a GET of `path` with `body`; with None, not at all."""

        def reply(route: Route) -> None:
            route.abort() if body is None else route.fulfill(json=body)

        pattern = re.compile(re.escape(path) + r"(\?.*)?$")
        self.page.unroute(pattern)
        self.page.route(pattern, reply)

    def run(self) -> None:
        """Queue the graph, as the button does."""
        self.page.evaluate("() => app.queuePrompt(0)")

    def nodes(self, type_: str) -> list[dict[str, Any]]:
        """Id and widgets of the nodes of this type."""
        return self.page.evaluate(
            """type => app.graph._nodes.filter((node) => node.type === type).map((node) => ({
                id: node.id,
                widgets: Object.fromEntries(
                    (node.widgets ?? []).map((widget) => [widget.name, widget.value])),
                labels: Object.fromEntries(
                    (node.widgets ?? []).map((widget) => [widget.name, widget.label])),
                saved: node.serialize().widgets_values,
            }))""",
            type_,
        )

    def wait_for_label(self, type_: str, label: str) -> None:
        """Wait until the last widget of the only node of this type says so."""
        self.page.wait_for_function(
            """([type, label]) => app.graph._nodes.find((node) => node.type === type)
                .widgets.at(-1).label === label""",
            arg=[type_, label],
        )

    def wait_for_recorded(self, number: int, seconds: float = 30) -> None:
        """Wait until the graph has `number` nodes, and the history that undo walks has that too.

        ComfyUI records a change and restores a state some frames after the key: a key that comes
        before would walk from another state.
        """
        self.page.wait_for_function(
            """number => {
                const history = app.extensionManager.workflow.activeWorkflow.changeTracker;
                return app.graph._nodes.length === number && !history._restoringState
                    && history.activeState.nodes.length === number;
            }""",
            arg=number,
            timeout=1000 * seconds,
        )

    def press_until_recorded(self, key: str, number: int, times: int) -> None:
        """Press a key until this holds. ComfyUI may record one change as two.

        A pasted node gets its place in the order of execution, and a graph its id, some frames
        later, and either may be a step of its own for undo and redo.
        """
        for left in reversed(range(times)):
            # What only has not been recorded yet is not done once more.
            if left == times - 1 or self.page.evaluate("app.graph._nodes.length") != number:
                self.page.locator("#graph-canvas").focus()
                self.page.keyboard.press(key)
            try:
                self.wait_for_recorded(number, seconds=5 if left else 30)
            except TimeoutError:
                if not left:
                    raise
            else:
                return

    def click_last_widget(self, type_: str, is_vue: bool) -> None:
        """Click the button that comes last on the only node of this type."""
        if is_vue:
            self.page.locator(".lg-node", has_text="devices").locator(
                "button[aria-label]"
            ).last.click()
            return
        x, y = self.page.evaluate(
            """type => {
                const node = app.graph._nodes.find((node) => node.type === type);
                const { offset, scale } = app.canvas.ds;
                const { left, top } = app.canvas.canvas.getBoundingClientRect();
                const [x, y] = [node.pos[0] + 60, node.pos[1] + node.widgets.at(-1).last_y + 8];
                return [left + (x + offset[0]) * scale, top + (y + offset[1]) * scale];
            }""",
            type_,
        )
        self.page.mouse.click(x, y)

    def wait_for_rest(self) -> None:
        """Wait until no node moves any more: a workflow that was opened is arranged at first."""
        places, before = "app.graph._nodes.map((node) => [...node.pos, ...node.size])", None
        while (now := self.page.evaluate(places)) != before:
            before = now
            self.page.wait_for_timeout(700)

    def right_click_title(self, type_: str) -> None:
        """Open the menu of the only node of this type."""
        self.page.evaluate(
            "type => app.canvas.centerOnNode(app.graph._nodes.find((n) => n.type === type))", type_
        )
        self.page.wait_for_timeout(500)  # Vue's nodes follow the canvas
        x, y = self.page.evaluate(
            """type => {
                const node = app.graph._nodes.find((node) => node.type === type);
                const { offset, scale } = app.canvas.ds;
                const { left, top } = app.canvas.canvas.getBoundingClientRect();
                const [x, y] = [node.pos[0] + 60, node.pos[1] - 12];
                return [left + (x + offset[0]) * scale, top + (y + offset[1]) * scale];
            }""",
            type_,
        )
        self.page.mouse.click(x, y, button="right")

    def expect_toast(self, text: str) -> None:
        """Wait for a message at the border of the page."""
        expect(self.page.get_by_text(text).first).to_be_visible()

    def saved(self) -> dict[str, Any]:
        """The workflow as the browser saves it."""
        return self.page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")

    def exported(self) -> dict[str, Any]:
        """The graph in the API format, as *Export (API)* writes it."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def queued(self) -> dict[str, Any]:
        """The graph in the API format, as the browser sends it when it is queued. Nothing runs."""
        answer = {"prompt_id": "none", "number": 1, "node_errors": {}}
        pattern = re.compile(r"/prompt$")
        self.page.route(pattern, lambda route: route.fulfill(json=answer))
        with self.page.expect_request(pattern) as request:
            self.run()
        self.page.unroute(pattern)
        return request.value.post_data_json["prompt"]

    def _on_console(self, message: ConsoleMessage) -> None:
        where = message.location.get("url", "")
        if message.type == "error" and f"/extensions/{PACK_FOLDER}/" in where + message.text:
            self.errors.append(f"{where}: {message.text}")

    def _on_page_error(self, error: Error) -> None:
        if f"/extensions/{PACK_FOLDER}/" in (error.stack or ""):
            self.errors.append(str(error))


@contextmanager
def canvas(browser: Browser, server: ComfyServer) -> Iterator[Canvas]:
    """A page that was never used before. At its end it must not have complained about us."""
    with browser.new_context(viewport={"width": 1400, "height": 900}) as context:
        opened = Canvas(context.new_page(), server)
        yield opened
        assert not opened.errors
