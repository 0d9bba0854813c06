"""Measure what settings of AsyncDiff do to pictures, beside what they save.

    python3 dev.py quality [--out DIR]                       the demonstration's model
    python3 dev.py quality --checkpoint FILE --prompts FILE  a model of yours, a prompt per line

The same seeds and prompts are sampled by the stock sampler and under each setting, in this process
and on one device. DIR gets quality.json, quality.md (tables), quality.png, drift.png and
pictures.png. --measure cpu,cpu also times the plans that fit these devices.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from .settings import Setting

REPO_ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="dev.py quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    comfyui = os.environ.get("COMFYUI_PATH")
    parser.add_argument("--comfyui", type=Path, default=comfyui, required=comfyui is None)
    parser.add_argument("--out", type=Path, default=REPO_ROOT / "quality-output")
    parser.add_argument("--checkpoint", type=Path, help="a full checkpoint instead of the demo's")
    parser.add_argument("--prompts", type=Path, help="a text file with a prompt per line")
    parser.add_argument("--negative", default="", help="the negative prompt for --checkpoint")
    parser.add_argument(
        "--size", type=size, default=(512, 512), metavar="WxH", help="in pixels, for --checkpoint"
    )
    parser.add_argument("--num-prompts", type=int, default=100)
    parser.add_argument("--skip-prompts", type=int, default=0, help="so many at the beginning")
    parser.add_argument("--seeds", type=int, default=1, help="pictures per prompt")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--cfg", type=float)
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--scheduler", default="simple")
    parser.add_argument(
        "--settings", nargs="*", type=setting, metavar="SETTING", help="such as 'N2 S1 w3'"
    )
    parser.add_argument("--measure", metavar="DEVICES", help="time what fits: cpu,cpu or cuda:0,..")
    parser.add_argument("--device", default="cpu", help="that samples: cpu, or cuda")
    options = parser.parse_args()
    if options.checkpoint and not options.prompts:
        parser.error("--checkpoint needs --prompts")
    for path in (options.checkpoint, options.prompts):
        if path and not path.is_file():
            parser.error(f"{path} is no file")
    if (
        options.num_prompts < 1
        or options.seeds < 1
        or options.steps < 2
        or options.skip_prompts < 0
    ):
        parser.error("there must be a prompt, a seed and two steps at least")
    enter_comfyui(options.comfyui, options.device)
    from .laboratory import Laboratory

    Laboratory(options).run()


def setting(name: str) -> Setting:
    try:
        return Setting.parse(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 512x512")
    return int(match[1]), int(match[2])


def enter_comfyui(comfyui: Path, device: str) -> None:
    """Make ComfyUI importable in this process, as if it had been started."""
    sys.path[:0] = [str(comfyui.resolve()), str(REPO_ROOT)]
    sys.argv[1:] = ["--cpu"] if device == "cpu" else []
    import comfy.options

    comfy.options.enable_args_parsing()


if __name__ == "__main__":
    main()
