"""Every command that the documents and the benchmarks name, found there and run, shortened.

A command is what follows ``python3 dev.py``, without options and what stands for something. One
that the tables below lack fails here, and so does an option that is named and not tried.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import dev
import harness.comfy_server
from benchmarks.compatibility import version_of
from benchmarks.reliability import cancel, free, live
from benchmarks.reliability.processes import wait_until
from benchmarks.templates.run import templates_folder
from harness.comfy_server import ComfyServer, free_port

ROOT = Path(__file__).parents[2]
RELIABILITY = "python -m benchmarks.reliability"

# What each command gets to be short. OUT is an empty folder; DOCUMENT a copy of
# docs/reliability.md in it; PORT a free one.
SHORT = {
    "doctor": "--devices cpu,cpu --out OUT/doctor.json --sabotage 1:slow",
    "python": "-c pass",
    "serve": "--quick-test-for-ci --port PORT",
    "python benchmarks/overhead.py": "--workers 2 --evaluations 10",
    "python benchmarks/tripwire.py": "--depth 2",
    "python -m benchmarks.capacity": "--models SDXL",
    "python -m benchmarks.folds": "--train 1 --steps 3 --prompts 1",
    "python -m benchmarks.gpu": "--devices cpu,cpu --models tiny --out OUT/gpu.md",
    "python -m benchmarks.memory": "--depth 4 --short 0.02 --plans 2,1",
    "python -m benchmarks.pipeline": "--steps 2 --repeats 1 --scale 1",
    "python -m benchmarks.plans": "--steps 3 --warm-up 1 --repeats 1 --plans 2,1,1 --levels 2",
    "python -m benchmarks.samplers": "--steps 3 --names euler --out OUT/samplers.md",
    "python -m benchmarks.traffic": "--stages 2 --batch 1",
    "python -m demo.shapes.classifier": "--steps 2 --out OUT",
    "python -m demo.shapes.train": "--steps 1 --prompts 1 --seed 1 --device cpu --out OUT",
}
# These start servers. They run in this process and get the tests' own in their place.
SHORT_ON_SERVER = {
    "python -m benchmarks.compatibility": [
        *("--out", "OUT/compatibility.md", "--only", "HunyuanDiT", "flux, bf16", "T2I adapter"),
    ],
    "python -m benchmarks.templates": ["--out", "OUT/templates.md", "--only", "^default$"],
    f"{RELIABILITY} faults": ["--only", "SIGKILL:async", "--document", "DOCUMENT"],
    f"{RELIABILITY} cancel": ["--count", "1", "--document", "DOCUMENT"],
    f"{RELIABILITY} fuzz": ["--count", "2", "--seed", "1", "--document", "DOCUMENT"],
    f"{RELIABILITY} marathon": ["--prompts", "20", "--document", "DOCUMENT"],
    f"{RELIABILITY} soak": [
        *("--prompts", "2", "--seed", "1", "--only", "wan", "--rounds", "1"),
        *("--document", "DOCUMENT"),
    ],
    f"{RELIABILITY} leftovers": [
        *("--victims", "worker", "--moments", "async", "--document", "DOCUMENT"),
    ],
    f"{RELIABILITY} free": ["--depth", "2", "--document", "DOCUMENT"],
}
ALONE = {
    f"{RELIABILITY} {name}" for name in ("faults", "free", "leftovers")
}  # want no workers but their own
NOT_HERE = {
    "demo": "takes minutes; tests/unit/test_demo.py and tests/comfyui/test_shapes.py try its parts",
    "quality": "tests/comfyui/test_quality.py runs it",
    "lint": "the whole test run begins with it",
    "test": "would run itself",
    f"{RELIABILITY} intruder": "tests/distributed/test_intruder.py runs it",
    "python -m benchmarks.parity": "takes ten minutes; tests/comfyui/test_own_process.py runs the "
    "same script with fewer combinations",
    "python -m harness.module_table": "writes a page of docs/; tests/unit/test_docs.py does "
    "the same without writing",
    "python -m tests.web.pictures": "overwrites pictures in docs/, at which a person has to look",
}


def texts() -> Iterator[str]:
    """What may name commands: documents, and docstrings of modules."""
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        yield path.read_text(encoding="utf-8")
    for folder in ("benchmarks", "demo"):
        for path in (ROOT / folder).rglob("*.py"):
            yield ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def commands_in(text: str) -> Iterator[tuple[str, set[str]]]:
    """The commands that a text names, and the options that it names with each.

    They stand in backticks, perhaps over the end of a line, or are a line of their own, perhaps
    with an explanation behind.
    """
    inline = re.findall(r"(?<!`)`python3 dev\.py\s([^`]+)`", text)
    lines = re.findall(r"^ *python3 dev\.py (.+?)(?: {2,}.*| #.*)?$", text, re.MULTILINE)
    for command in (*inline, *lines):
        yield name_of(command.split()), set(re.findall(r"--[a-z][a-z-]*", command))


def name_of(words: list[str]) -> str:
    """A command's name: the words before the first that is an option or stands for something."""
    name = [words[0]]
    for word in words[1:]:
        if words[0] != "python" or not re.fullmatch(r"-m|[a-z][a-z_./]*", word):
            break
        name.append(word)
    return " ".join(name)


def found() -> dict[str, set[str]]:
    """All commands, with their options."""
    commands: dict[str, set[str]] = {}
    for text in texts():
        for name, options in commands_in(text):
            commands.setdefault(name, set()).update(options)
    return commands


def test_every_command_has_a_short_form() -> None:
    assert set(found()) == {*SHORT, *SHORT_ON_SERVER, *NOT_HERE}


def test_every_option_is_tried() -> None:
    short = {**SHORT_ON_SERVER, **{name: line.split() for name, line in SHORT.items()}}
    named = found()
    left = {name: named.get(name, set()) - set(words) for name, words in short.items()}
    assert {name: options for name, options in left.items() if options} == {}


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        ("Try `python3 dev.py demo --out DIR`.", [("demo", {"--out"})]),
        ("by `python3 dev.py\npython -m a.b [--x 2]`:", [("python -m a.b", {"--x"})]),
        ("```\npython3 dev.py test -k lora  # pytest's --x\n```", [("test", set())]),
        ("    python3 dev.py python -m a.b sub [--x 1]   # -", [("python -m a.b sub", {"--x"})]),
        ("    python3 dev.py python a/b.py FILE", [("python a/b.py", set())]),
        ("python3 dev.py python  # the Python", [("python", set())]),
        ("`dev.py demo` and `python3 other.py`", []),
    ],
)
def test_commands_are_found(text: str, commands: list[tuple[str, set[str]]]) -> None:
    assert list(commands_in(text)) == commands


@pytest.fixture
def handed_over(
    comfyui_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[list[str], Path]]:
    """What dev.py would run: arguments of Python's, and the folder. It sets nothing up here."""
    handed: list[tuple[list[str], Path]] = []
    environment = dev.Environment(Path(sys.executable), comfyui_path, managed=True)

    def hand_over(_: dev.Environment, arguments: list[str], folder: Path = dev.REPO) -> int:
        handed.append((arguments, folder))
        return 0

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui_path))
    monkeypatch.setattr(dev, "signal", types.SimpleNamespace(signal=lambda *_: None, SIGTERM=15))
    monkeypatch.setattr(dev, "existing_environment", lambda *_: environment)
    monkeypatch.setattr(dev, "hand_over", hand_over)
    return handed


def filled_in(words: list[str], folder: Path) -> list[str]:
    document = folder / "reliability.md"
    if "DOCUMENT" in words:
        shutil.copy(ROOT / "docs" / "reliability.md", document)
    values = {"OUT": str(folder), "DOCUMENT": str(document), "PORT": str(free_port())}
    return [re.sub("OUT|DOCUMENT|PORT", lambda match: values[match[0]], word) for word in words]


@pytest.mark.parametrize("command", SHORT)
def test_it_works(command: str, handed_over: list[tuple[list[str], Path]], tmp_path: Path) -> None:
    words = filled_in(SHORT[command].split(), tmp_path)
    assert dev.main([*command.split(), *words]) == 0
    [(arguments, folder)] = handed_over
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    if command == "serve":
        assert "asyncdiff" in done.stdout and "IMPORT FAILED" not in done.stdout


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at /proc")
@pytest.mark.parametrize("command", SHORT_ON_SERVER)
def test_it_works_on_a_server(
    command: str,
    lab: ComfyServer,
    handed_over: list[tuple[list[str], Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if command.endswith("templates") and templates_folder() is None:
        assert version_of(lab.comfyui) != dev.DEFAULT_HOST
        pytest.skip("this ComfyUI came without its templates")

    @contextlib.contextmanager
    def serving(*_: object, **__: object) -> Iterator[tuple[ComfyServer, live.Watch]]:
        if command in ALONE:
            live.release(lab)
            assert wait_until(lambda: not live.workers(lab), 60)
        with live.Watch(lab) as watch:
            yield lab, watch

    (tmp_path / "tmp").mkdir()
    monkeypatch.setitem(lab.env, "TMPDIR", str(tmp_path / "tmp"))  # where files are counted
    monkeypatch.setattr(live, "serving", serving)
    monkeypatch.setattr(
        harness.comfy_server, "ComfyServer", lambda *_, **__: contextlib.nullcontext(lab)
    )
    # A busy machine may hold up any single cancel; of a small model there is little to give back.
    monkeypatch.setattr(cancel, "MARGIN_SECONDS", 30.0)
    monkeypatch.setattr(free, "MIN_SHARE", 0.3)
    assert dev.main([*command.split(), *filled_in(SHORT_ON_SERVER[command], tmp_path)]) == 0
    [(arguments, folder)] = handed_over
    assert arguments[0] == "-m" and folder == ROOT
    module = importlib.import_module(arguments[1])
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{arguments[1]}.__main__")
    monkeypatch.setattr(sys, "argv", arguments[1:])
    module.main()
