"""See the package."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from pathlib import Path

from benchmarks.reliability.document import fill

from .checks import Checks, Seen
from .models import MODELS, write

REPO_ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__)
    path = os.environ.get("COMFYUI_PATH")
    parser.add_argument("--comfyui", type=Path, default=path, required=path is None)
    parser.add_argument("--devices", help="all GPUs, or the only one twice, if not given")
    parser.add_argument("--models", nargs="*", choices=MODELS, metavar="NAME")
    parser.add_argument("--out", type=Path, help="a page with a place for figures, or a new file")
    options = parser.parse_args()
    sys.path[:0] = [str(options.comfyui.resolve()), str(REPO_ROOT)]
    sys.argv[1:] = ["--cpu"] if options.devices and "cuda" not in options.devices else []
    import comfy.options

    comfy.options.enable_args_parsing()
    import torch

    devices = tuple((options.devices or every_gpu()).split(","))
    if devices == ("",):
        parser.error("there is no GPU here; --devices cpu,cpu --models tiny tries this program")
    if len(devices) < 2:
        parser.error("--devices: two at least; the same one may stand twice")
    if "cpu" in devices:
        torch.set_num_threads(1)
    lines = [f"{cards(devices)}; PyTorch {torch.__version__}, {platform.platform()}.", ""]
    lines += ["| model | what | found |", "|---|---|---|"]
    print("\n".join(lines))
    wrong = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for name in options.models or [name for name in MODELS if name != "tiny"]:
            for dtype in MODELS[name].dtypes:
                file = Path(folder) / f"{name}-{dtype}.safetensors"
                write(MODELS[name], dtype, file)
                for seen in Checks(MODELS[name], file, devices).run():
                    lines.append(f"| {name}, {dtype} | {seen.what} | {seen.found} |")
                    print(lines[-1], flush=True)
                    wrong += [(name, dtype, seen)] if seen.is_right is False else []
                file.unlink()
    if options.out and options.out.exists():
        fill(options.out, "figures", "\n".join(lines))
    elif options.out:
        options.out.write_text("\n".join(lines) + "\n")
    if wrong:
        sys.exit(f"not as it should be: {[f'{n}, {d}: {said(s)}' for n, d, s in wrong]}")


def every_gpu() -> str:
    import torch

    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ",".join(f"cuda:{index}" for index in range(number)) if number != 1 else "cuda:0,cuda:0"


def cards(devices: tuple[str, ...]) -> str:
    """The devices with their names."""
    import torch

    names = [torch.cuda.get_device_name(d) if d.startswith("cuda") else "CPU" for d in devices]
    return ", ".join(f"{device} {name}" for device, name in zip(devices, names, strict=True))


def said(seen: Seen) -> str:
    return f"{seen.what}: {seen.found}"


if __name__ == "__main__":
    main()
