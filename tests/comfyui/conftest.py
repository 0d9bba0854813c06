"""A live ComfyUI for the tests. It is driven over HTTP and never imported in this process."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import shapes
from harness.comfy_server import ComfyServer
from harness.lab import ADAPTER_PACK, GGUF_PACK, write_models


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    """The ComfyUI that `dev.py test` names; it must run on this very Python."""
    path = os.environ.get("ASYNCDIFF_TEST_COMFYUI")
    if not path:
        pytest.skip("needs ComfyUI: run `python3 dev.py test`, or set ASYNCDIFF_TEST_COMFYUI")
    return Path(path)


@pytest.fixture(scope="session")
def server(comfyui_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """One server for all tests, since a start takes ten seconds.

    A test that ends it or changes its flags starts one of its own. One thread, because the bits of
    a CPU result depend on the number of threads, and a worker has no more.
    """
    base_dir = tmp_path_factory.mktemp("comfyui")
    # More groups than ComfyUI keeps otherwise, since workers take ten seconds to come up.
    env = {"OMP_NUM_THREADS": "1", "ASYNCDIFF_MAX_GROUPS": "4"}
    packs = [shapes.PACK, ADAPTER_PACK, GGUF_PACK]
    # Another version of ComfyUI's page, as its package comfyui-frontend-package has it.
    page = os.environ.get("ASYNCDIFF_TEST_FRONTEND")
    args = ["--front-end-root", page] if page else []
    with ComfyServer(comfyui_path, base_dir, args=args, env=env, more_packs=packs) as running:
        yield running


@pytest.fixture(scope="session")
def lab(server: ComfyServer) -> ComfyServer:
    """The server, with the small models of lab.py in it."""
    write_models(server.models)
    return server
