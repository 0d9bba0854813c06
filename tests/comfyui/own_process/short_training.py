"""Run in a process of its own: a short training, at once and in two sittings.

    python short_training.py COMFYUI PACK FOLDER

Prints one JSON object: what was compared, and whether it held.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def main(comfyui: str, pack: str, folder: str) -> None:
    sys.path[:0] = [comfyui, pack]
    sys.argv[1:] = ["--cpu", "--use-pytorch-cross-attention"]
    import torch
    from safetensors.torch import load_file

    from demo.shapes import CODEC, DIFFUSION_MODEL, train

    torch.set_num_threads(1)
    train.BATCH = 4
    train.Training.accuracy = lambda self: 0.0  # what it samples takes longer than this training

    def training(name: str, seed: int = 0) -> train.Training:
        out = Path(folder, name)
        out.mkdir(exist_ok=True)
        how = {"steps": 4, "seed": seed, "device": "cpu", "prompts": None}
        return train.Training(argparse.Namespace(out=out, **how))

    def weights(name: str, file: str = DIFFUSION_MODEL) -> dict[str, torch.Tensor]:
        return load_file(Path(folder, name, file))

    def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
        return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)

    training("at once").run()
    interrupted = training("two sittings")
    for step, latents, context in interrupted._batches():
        if step == 2:
            break
        interrupted._train(latents, context)
        interrupted.step = step + 1
    interrupted._save_state()
    resumed = training("two sittings")
    resumed_at = resumed.step
    resumed.run()
    training("other seed", seed=1).run()

    log = [*map(json.loads, Path(folder, "at once", "log.jsonl").read_text().splitlines())]
    held = {
        "it goes on where it was": resumed_at == 2,
        "the same weights in two sittings": same(weights("at once"), weights("two sittings")),
        "the same codec": same(weights("at once", CODEC), weights("two sittings", CODEC)),
        "another seed, other weights": not same(weights("at once"), weights("other seed")),
        "the loss is logged": [line["step"] for line in log] == [0, 3] and log[0]["loss"] > 0,
        "fp16": {t.dtype for t in weights("at once").values()} == {torch.float16},
    }
    print(json.dumps(held))


if __name__ == "__main__":
    main(*sys.argv[1:])
