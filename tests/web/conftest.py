"""A server of its own, and a browser; without a Chromium these tests are skipped."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from harness.comfy_server import ComfyServer
from tests.comfyui.conftest import comfyui_path, lab, server  # noqa: F401 - fixtures

from .browser import Canvas, canvas, chromium, launch


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = chromium()
    if executable is None:
        pytest.skip("needs a Chromium on the search path, such as Debian's package chromium")
    with sync_playwright() as playwright:
        opened = launch(playwright, executable)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, lab: ComfyServer) -> Iterator[Canvas]:  # noqa: F811
    """ComfyUI's page, just opened: classic nodes, dark theme."""
    with canvas(browser, lab) as opened:
        yield opened.open(Comfy_VueNodes_Enabled=False, Comfy_ColorPalette="dark")
