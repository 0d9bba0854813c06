"""How reliable the pack is, tried on a live ComfyUI on the CPU. Linux only.

    python3 dev.py python -m benchmarks.reliability faults [--only KIND:MOMENT ...]
    python3 dev.py python -m benchmarks.reliability soak [--prompts 200] [--seed 0]
    python3 dev.py python -m benchmarks.reliability marathon [--prompts 10000]
    python3 dev.py python -m benchmarks.reliability cancel [--count 50]
    python3 dev.py python -m benchmarks.reliability free
    python3 dev.py python -m benchmarks.reliability fuzz [--count 1000] [--seed 0]
    python3 dev.py python -m benchmarks.reliability intruder [--count 100]
    python3 dev.py python -m benchmarks.reliability leftovers [--victims both] [--moments idle]

docs/reliability.md says what each of them does, and gets what it found. They end with a status
other than 0 if something is not as it is promised there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import cancel, faults, free, fuzz, intruder, leftovers, live, marathon, soak
from .answers import Answers
from .document import figures, fill

REPO_ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = REPO_ROOT / "docs" / "reliability.md"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.reliability",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    comfyui = os.environ.get("COMFYUI_PATH")
    parser.add_argument("--comfyui", type=Path, default=comfyui, required=comfyui is None)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable[[argparse.Namespace, Path], Any]) -> Any:
        sub = commands.add_parser(name)
        sub.set_defaults(function=function)
        sub.add_argument("--document", type=Path, default=DOCUMENT, help="gets what is found")
        return sub

    sub = command("faults", run_faults)
    sub.add_argument("--only", nargs="*", default=(), metavar="KIND:MOMENT")
    sub = command("soak", run_soak)
    sub.add_argument("--prompts", type=int, default=200)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--only", nargs="*", default=(), metavar="VARIANT")
    sub.add_argument("--rounds", type=int, default=soak.ROUNDS, help="of a census")
    sub = command("marathon", run_marathon)
    sub.add_argument("--prompts", type=int, default=10_000)
    sub = command("cancel", run_cancel)
    sub.add_argument("--count", type=int, default=50)
    sub = command("free", run_free)
    sub.add_argument("--depth", type=int, default=free.DEPTH, help="of the model")
    sub = command("fuzz", run_fuzz)
    sub.add_argument("--count", type=int, default=1000)
    sub.add_argument("--seed", type=int, default=0)

    sub = command("intruder", run_intruder)
    sub.add_argument("--count", type=int, default=100)
    sub = command("leftovers", run_leftovers)
    victims = leftovers.VICTIMS
    sub.add_argument("--victims", nargs="*", choices=victims, default=list(victims))
    sub.add_argument("--moments", nargs="*", choices=faults.MOMENTS, default=list(faults.MOMENTS))

    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reliability-") as folder:
        problems = options.function(options, Path(folder))
    if problems:
        sys.exit("\n".join(["not as it should be:", *problems]))


def run_faults(options: argparse.Namespace, folder: Path) -> list[str]:
    cases, problems = [], []
    with (
        live.serving(options.comfyui, folder, **faults.ENVIRONMENT) as (server, watch),
        Answers(server) as answers,
    ):
        for case in faults.run_all(server, watch, options.only):
            cases.append(case)
            print(f"{case.kind} at {case.moment}: {case.told or case.cell}", flush=True)
            for problem in case.problems:
                problems.append(f"{case.kind} at {case.moment}: {problem}")
                print(f"    {problem}", flush=True)
    print(faults.table(cases))
    if not options.only:
        fill(options.document, "faults", faults.table(cases))
        result = {**answers.summary(), "problems": answers.problems()}
        return problems + report(options, "faults", result, "answers")
    return problems + answers.problems()


def run_soak(options: argparse.Namespace, folder: Path) -> list[str]:
    results = {}
    for name in ("stock", "spread"):
        (folder / name / "tmp").mkdir(parents=True)
        temporary = str(folder / name / "tmp")
        with live.serving(options.comfyui, folder / name, TMPDIR=temporary) as (server, watch):
            one = soak.Soak(server, watch, options.seed, options.only, is_stock=name == "stock")
            results[name] = one.run(options.prompts, rounds=options.rounds)
    result = results["spread"]
    for when in ("first census", "last census"):
        alone = results["stock"][when]
        result[f"{when}, the same with stock nodes"] = alone and {"ComfyUI": alone["ComfyUI"]}
    result["problems"] += [f"stock nodes: {text}" for text in results["stock"]["problems"]]
    command = f"soak --prompts {options.prompts} --seed {options.seed}"
    if options.only:
        command += " --only " + " ".join(f"'{name}'" for name in options.only)
    if options.rounds != soak.ROUNDS:
        command += f" --rounds {options.rounds}"
    return report(options, command, result)


def run_marathon(options: argparse.Namespace, folder: Path) -> list[str]:
    (folder / "tmp").mkdir()
    with live.serving(options.comfyui, folder, TMPDIR=str(folder / "tmp")) as (server, watch):
        result = marathon.measure(server, watch, options.prompts)
    return report(options, f"marathon --prompts {options.prompts}", result)


def run_cancel(options: argparse.Namespace, folder: Path) -> list[str]:
    with live.serving(options.comfyui, folder) as (server, watch):
        result = cancel.measure(server, watch, options.count)
    result["problems"] += cancel.late(result)
    return report(options, f"cancel --count {options.count}", result)


def run_free(options: argparse.Namespace, folder: Path) -> list[str]:
    with live.serving(options.comfyui, folder) as (server, watch):
        result = free.measure(server, watch, options.depth)
    command = "free" if options.depth == free.DEPTH else f"free --depth {options.depth}"
    return report(options, command, result)


def run_fuzz(options: argparse.Namespace, folder: Path) -> list[str]:
    with live.serving(options.comfyui, folder) as (server, watch):
        result = fuzz.measure(server, watch, options.count, options.seed)
    return report(options, f"fuzz --count {options.count} --seed {options.seed}", result)


def run_intruder(options: argparse.Namespace, folder: Path) -> list[str]:
    # In a process of its own, whose network is taken away.
    command = [sys.executable, "-m", intruder.__name__, str(folder), str(options.count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, cwd=REPO_ROOT)
    return report(options, f"intruder --count {options.count}", json.loads(done.stdout))


def run_leftovers(options: argparse.Namespace, folder: Path) -> list[str]:
    command = "leftovers"
    if options.victims != list(leftovers.VICTIMS):
        command += " --victims " + " ".join(options.victims)
    if options.moments != list(faults.MOMENTS):
        command += " --moments " + " ".join(options.moments)
    result = leftovers.measure(options.comfyui, folder, options.victims, options.moments)
    return report(options, command, result)


def report(
    options: argparse.Namespace, command: str, result: dict[str, Any], place: str = ""
) -> list[str]:
    """Print what was found, and put it into the document; what of it is not as it should be."""
    print(json.dumps(result, indent=2))
    fill(options.document, place or command.split()[0], figures(command, result))
    return list(result["problems"])


if __name__ == "__main__":
    main()
