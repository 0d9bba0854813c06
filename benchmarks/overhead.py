"""What an evaluation costs beside the model: from the skeleton's `forward` to eps.

    python3 dev.py python benchmarks/overhead.py [--workers 2] [--evaluations 500]

The units of the model cost nothing, so what is left is the way there and back: conditioning is
compared (and not sent again, since it does not change), the latent goes to every worker, messages
cross the links, eps comes back.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import types
import uuid
from pathlib import Path
from typing import Any

REPO_ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    path = os.environ.get("COMFYUI_PATH")
    parser.add_argument("--comfyui", type=Path, default=path, required=path is None)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--evaluations", type=int, default=500)
    options = parser.parse_args()
    sys.path[:0] = [str(options.comfyui.resolve()), str(REPO_ROOT)]
    sys.argv[1:] = ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import torch

    from asyncdiff_core.algorithm.schedule import AsyncSchedule
    from asyncdiff_core.comfyui.model import layouts
    from asyncdiff_core.comfyui.model.loading import Loader
    from asyncdiff_core.comfyui.patches.weight_patches import WeightChanges
    from asyncdiff_core.comfyui.run.pool import POOL
    from asyncdiff_core.comfyui.run.remote import RemoteModel
    from asyncdiff_core.planning.planner import PlanRequest
    from benchmarks.overhead_model import LAYOUT, FreeModel

    layouts.LAYOUTS["FreeModel"] = LAYOUT

    class FreeRemoteModel(RemoteModel):
        builder = "benchmarks.overhead_model:build"

    model = FreeModel()
    config = types.SimpleNamespace(unet_config={}, manual_cast_dtype=None)
    base_model: Any = torch.nn.Module()
    base_model.diffusion_model, base_model.model_config = model, config
    base_model.model_sampling = types.SimpleNamespace(timestep=lambda sigma: sigma)
    plan = PlanRequest(("cpu",) * options.workers)
    remote = FreeRemoteModel(base_model, Loader("unused:unused", ()), plan)

    generator = torch.Generator().manual_seed(0)
    context = torch.randn(2, 77, 768, generator=generator)
    sigmas = torch.linspace(14, 0.1, options.evaluations + 60)
    uuids = [uuid.uuid4(), uuid.uuid4()]
    seconds, sent = [], []

    def bytes_sent() -> int:
        """To the first worker, since it was started."""
        group = POOL.peek(remote.key)
        return group.members[0].process.bytes_sent if group else 0

    with torch.inference_mode():
        remote.begin_run(AsyncSchedule(warm_up=1), WeightChanges("none"))
        for i in range(options.evaluations + 20):
            x = torch.randn(2, 4, 64, 64, generator=generator)  # cond and uncond, [2, 4, 64, 64]
            t = sigmas[i].expand(2)
            transformer_options = {
                "uuids": uuids,
                "cond_or_uncond": [1, 0],
                "wrappers": {},
                "sigmas": sigmas[i : i + 1],
                "sample_sigmas": sigmas[i - i % 30 : i - i % 30 + 31],
            }
            again = context.clone()  # a sampler makes its conditioning anew in every step
            before = bytes_sent()
            start = time.perf_counter()
            model(x, t, context=again, transformer_options=transformer_options)
            end = time.perf_counter()
            sent.append(bytes_sent() - before)
            if i >= 20:  # warm-up runs are not counted
                seconds.append(end - start)
        remote.end_run()
    POOL.close()
    deciles = statistics.quantiles(seconds, n=10)
    print(
        f"{options.workers} workers, latent 2x4x64x64, {len(seconds)} evaluations: "
        f"median {statistics.median(seconds) * 1e3:.2f} ms, "
        f"p10 {deciles[0] * 1e3:.2f} ms, p90 {deciles[-1] * 1e3:.2f} ms\n"
        f"sent to the first worker: {sent[0]} bytes by the first evaluation, with what "
        f"prepares it; {sent[-1]} by the others "
        f"(latent {x.nbytes}, conditioning {context.nbytes})"
    )


if __name__ == "__main__":
    main()
