"""A node pack for the tests: ComfyUI restarts as its managers have it restart."""

import os
import sys

from server import PromptServer

NODE_CLASS_MAPPINGS: dict = {}


@PromptServer.instance.routes.get("/test/restart")
async def restart(request):
    """Become a new ComfyUI in the same process."""
    os.execv(sys.executable, [sys.executable, *sys.argv])
