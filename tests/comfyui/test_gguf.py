"""GGUF files, by ComfyUI-GGUF where ASYNCDIFF_GGUF_PACK says where it is, else by a stand-in.

Whether workers give the bits of the pack's own run: test_brought.py.
"""

from __future__ import annotations

from harness.brought import CASES, workflow
from harness.comfy_server import ComfyServer
from harness.features import parallelized
from harness.lab import last_report


def test_weights_stay_packed(server: ComfyServer) -> None:
    sizes = {}
    for case in CASES:
        kind, _, rest = case.name.partition(" ")
        if kind == "GGUF":
            server.run(parallelized(workflow(server, case)))
            sizes[rest] = sum(worker["weight_bytes"] for worker in last_report(server)["workers"])
    assert sizes["Q8_0 (ComfyUI-GGUF)"] < 0.6 * sizes["F16"]
    assert sizes["Q4_K"] < sizes["Q8_0 (ComfyUI-GGUF)"]
    assert sizes["BF16"] == sizes["F16"]
