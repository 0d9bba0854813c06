"""Which models and which changes to models work, as a page: tried now, one after the other.

    python3 dev.py python -m benchmarks.compatibility [--out docs/compatibility.md] [--only ..]

Runs what test_architectures.py, test_stock_format.py, test_features.py and test_ways.py in
tests/comfyui run, and writes down what came of it. Takes an hour on two cores. With names of
architectures, of features, of ways of packs, or of a file as it is printed ('sd2, fp8') only these
are tried.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

REPO_ROOT = Path(__file__).resolve().parents[1]
STAGES = (2, 3, 4)
# The models that features are tried on: their name, and their row among the architectures.
KINDS = {
    "sd15": ("SD 1.5", "SD 1.x, SD 2.x"),
    "sd3": ("SD3", "SD3, SD3.5"),
    "flux": ("Flux.1", "Flux.1, LongCat Image"),
    "wan": ("Wan 2.1", "Wan 2.1, 2.2: text to video"),
}
ANIMATED = "SD 1.5 with AnimateDiff motion modules"
UNTRIED = "-"

Features = list[tuple[str, str, str]]  # name, the model that it was tried on, what came of it
Files = dict[str, dict[str, str]]  # what came of each format, by the row among the architectures
Ways = list[tuple[str, ...]]  # name, packs, what came of it in each place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    path = os.environ.get("COMFYUI_PATH")
    parser.add_argument("--comfyui", type=Path, default=path, required=path is None)
    parser.add_argument("--out", type=Path, default=REPO_ROOT / "docs" / "compatibility.md")
    parser.add_argument("--only", nargs="*", default=(), metavar="NAME", help="what is tried")
    options = parser.parse_args()
    comfyui = options.comfyui.resolve()
    architectures = run_architectures(comfyui, options.only)
    features, files, ways, brought = run_on_server(comfyui, options.only)
    rows = architecture_rows(architectures, features, files)
    formats = [(label, *came.values()) for label, came in files.items()]
    options.out.write_text(page(rows, files, features, ways, brought, version_of(comfyui)))
    everything = (*rows, *features, *formats, *ways, *brought)
    wrong = [row for row in everything if any(cell.startswith("no") for cell in row[1:])]
    print(
        f"{len(architectures)} architectures, {len(features)} features, "
        f"{sum(map(len, files.values()))} files, {len(ways)} ways of packs, {len(brought)} with "
        f"weights of their own; {options.out}"
    )
    if wrong:
        sys.exit(f"not all of them are right: {wrong}")


def version_of(comfyui: Path) -> str:
    code = "import comfyui_version; print(comfyui_version.__version__)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=comfyui, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def run_architectures(comfyui: Path, only: Collection[str]) -> dict[str, Any]:
    from harness.processes import run

    return run("architecture_parity.py", comfyui, REPO_ROOT, *only, timeout=1800)


def run_on_server(comfyui: Path, only: Collection[str]) -> tuple[Features, Files, Ways, Ways]:
    """What came of each feature, of the files in the stock format, of what packs do, and of what
    brings weights of its own."""
    from demo import shapes
    from harness.brought import CASES, SPREADS, async_outcome
    from harness.brought import outcome as outcome_of_case
    from harness.comfy_server import ComfyServer
    from harness.features import FEATURES, outcome, write_files
    from harness.lab import ADAPTER_PACK, GGUF_PACK, write_models
    from harness.stock_files import KINDS as FORMATS
    from harness.stock_files import PACKED, compare, write
    from harness.ways import PLACES, WAYS
    from harness.ways import outcome as outcome_of_way

    def attempt(what: str, run: Callable[[], str]) -> str:
        try:
            result = run()
        except Exception as error:
            result = f"no: {type(error).__name__}: {error}".splitlines()[0]
        print(f"{what}: {result}", flush=True)
        return result

    def compared(*case: Any) -> str:
        compare(server, *case)
        return "exact"

    rows: Features = []
    files: Files = {}
    ways: Ways = []
    brought: Ways = []
    with tempfile.TemporaryDirectory() as folder:
        env = {"OMP_NUM_THREADS": "1", "ASYNCDIFF_MAX_GROUPS": "4"}
        packs = [shapes.PACK, ADAPTER_PACK, GGUF_PACK]
        with ComfyServer(comfyui, Path(folder), env=env, more_packs=packs) as server:
            write_models(server.models)
            write_files(server.models)
            for feature in (one for one in FEATURES if not only or one.name in only):
                result = attempt(feature.name, partial(outcome, server, feature))
                rows.append((feature.name, feature.kind, result))
            wanted = wanted_files(only, FORMATS)
            families = write(server, wanted, wanted) if wanted or not only else {}
            for name, family in families.items():
                if "missing" in family:
                    continue  # in this ComfyUI
                came = files[family["label"]] = dict.fromkeys(FORMATS, UNTRIED)
                for kind in family["formats"]:
                    if kind not in PACKED.get(name, ()):
                        came[kind] = attempt(
                            f"{name}, {kind}", partial(compared, name, family, kind)
                        )
                    server.post("/asyncdiff/release", {})
            for way in (one for one in WAYS if not only or one.name in only):
                results = [
                    attempt(
                        f"{way.name} {PLACES[place]}",
                        partial(outcome_of_way, server, way, place),
                    )
                    for place in range(len(PLACES))
                ]
                ways.append((way.name, way.packs, *map(_in_short, results)))
            for case in (one for one in CASES if not only or one.name in only):
                results = [
                    attempt(f"{case.name} {spread}", partial(outcome_of_case, server, case, spread))
                    for spread in SPREADS
                ]
                results.append(attempt(f"{case.name} async", partial(async_outcome, server, case)))
                brought.append((case.name, *results))
    return rows, files, ways, brought


def wanted_files(only: Collection[str], formats: Collection[str]) -> dict[str, list[str]]:
    """The formats of each family for which `only` has names like 'sd2, fp8'."""
    wanted: dict[str, list[str]] = {}
    for name, _, kind in (text.partition(", ") for text in only):
        if kind in formats:
            wanted.setdefault(name, []).append(kind)
    return wanted


def _in_short(result: str) -> str:
    """Errors of this project say what is in the way; others are faults."""
    return result if result.startswith(("exact", "local", "no:")) else "refused"


def architecture_rows(
    report: dict[str, Any], features: Features, files: Files
) -> list[tuple[str, ...]]:
    """The cells of each architecture: its name, its class, and ``yes``, ``no`` or `UNTRIED`."""

    def tried(label: str, about: str) -> list[bool]:
        kinds = {kind for kind, (_, row) in KINDS.items() if row == label}
        return [
            result == "exact"
            for name, kind, result in features
            if (kind in kinds or (label == ANIMATED and "AnimateDiff" in name))
            and about in name
            and result != "refused"
        ]

    def told(results: list[bool]) -> str:
        return ("yes" if all(results) else "no") if results else UNTRIED

    rows: list[tuple[str, ...]] = []
    for label, row in report.items():
        if "missing" in row:
            if "newer" in row:
                rows.append((label, f"`{row['class']}`", *[UNTRIED] * 7))
            continue  # in this ComfyUI
        if "error" in row:
            rows.append((label, "", *[f"no: {row['error'].splitlines()[-1]}"] * 7))
            continue
        held = row["held"]
        is_cut = held["cut anywhere"] and held.get("folded anywhere", True)
        exact = ["yes" if held[f"N={n}"] and is_cut else "no" for n in STAGES]
        is_async = held["async differs"] and all(held[f"N={n} async"] for n in STAGES)
        file = [came == "exact" for came in files.get(label, {}).values() if came != UNTRIED]
        more = (
            told(file + tried(label, "")),
            told(file + tried(label, "LoRA")),
            told(tried(label, "ControlNet")),
        )
        rows.append((label, f"`{row['class']}`", *exact, "yes" if is_async else "no", *more))
    return rows


def page(
    rows: list[tuple[str, ...]],
    files: Files,
    features: Features,
    ways: Ways,
    brought: Ways,
    version: str,
) -> str:
    """The tables as a document."""
    formats = list(next(iter(files.values()), ()))
    lines = [
        "# Compatibility",
        "",
        f"What was tried with ComfyUI {version}, on the CPU, and what came of it. Made by",
        "",
        "    python3 dev.py python -m benchmarks.compatibility",
        "",
        "## Architectures",
        "",
        "Tiny models with random weights, of ComfyUI's own classes, in one process. *Exact*: with",
        "full warm-up, *N* stages give the bits of the plain forward (those of UNets lie around",
        "each other); so do two stages one after the other with the cut at every other place, and",
        "of UNets two that are folded at a dozen places. *Async*: with a warm-up of one the stages",
        "give the bits that the algorithm's definition gives, for N = 2, 3 and 4.",
        "",
        "*Load*, *LoRA* and *ControlNet* are tried on a live server with two workers, with small",
        "files in the stock format (see below), and with ControlNets.",
        f"{UNTRIED}: not tried.",
        "",
        "| models | ComfyUI's class | exact, N=2 | N=3 | N=4 | async | load | LoRA | ControlNet |",
        "|---|---|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        "## Formats of files",
        "",
        "Small files in the stock format, with layers above every threshold, on a live server with",
        "two workers: by this pack's loader, by *Parallelize Model* behind ComfyUI's own, and by a",
        "sampler node alone, each without and with a LoRA. *exact*: with full warm-up all results",
        f"have the bits of the stock ones. {UNTRIED}: ComfyUI itself cannot load the family in",
        "this format.",
        "",
        f"| models | {' | '.join(formats)} |",
        f"|---|{'---|' * len(formats)}",
        *(f"| {label} | {' | '.join(came.values())} |" for label, came in files.items()),
        "",
        "## What people do to models",
        "",
        "Small models on a live server with two workers. *exact*: with full warm-up the result has",
        "the bits of the stock one, and is another one than without the feature. *refused*: an",
        "error names what is in the way.",
        "",
        "| what | tried on | result |",
        "|---|---|---|",
        *(f"| {name} | {KINDS[kind][0]} | {result} |" for name, kind, result in features),
        "",
        "## What packs do to models",
        "",
        "The ways in which packs reach into a MODEL, each done by a small node of the tests, tried",
        "behind this pack's loader, before *Parallelize Model*, and before a sampler node that",
        "chooses for itself. *exact* as above; *local*: the picture is the stock one, made in",
        "ComfyUI's own process, and a note on the node says why; *refused*: an error names it.",
        "",
        "| what | done by | behind the loader | before *Parallelize* | sampler alone |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in ways),
        "",
        "## Weights that no file of the MODEL has",
        "",
        "MODELs that packs make, patches that bring a model, and ControlNets that take parts of",
        "the MODEL: small ones, with full warm-up, without and with a LoRA. *exact* as above, with",
        "two and three workers by *Parallelize Model*, and with a sampler node that chooses.",
        "*async*: with three workers and a warm-up of one evaluation, the bits of the oracle.",
        "",
        "| what | N=2 | N=3 | sampler alone | async |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in brought),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
