"""The set-up logic of dev.py: no network, and nothing is installed."""

import ast
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

import dev

DEV = dev.REPO / "dev.py"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return tmp_path / "cache" / "asyncdiff"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replaces what takes minutes; collects the folders that were built."""
    folders: list[Path] = []

    def step(command: list, scratch: Path) -> None:
        if "venv" in command:
            python = dev.managed_environment_paths(dev.DEFAULT_HOST).python
            python.parent.mkdir(parents=True)
            python.touch()
            folders.append(scratch.parent)

    monkeypatch.setattr(dev, "run_step", step)
    monkeypatch.setattr(dev, "fetch_comfyui", lambda *_: None)
    monkeypatch.setattr(dev, "check_disk", lambda _: None)
    return folders


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DEV), *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


# Python


def test_old_python_parses_the_file() -> None:
    ast.parse(DEV.read_text(encoding="utf-8"), feature_version=(3, 6))


def test_old_python_gets_one_clear_line() -> None:
    code = (
        "import runpy, sys; sys.version_info = (3, 9, 1, 'final', 0);"
        f"runpy.run_path({str(DEV)!r}, run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    assert re.fullmatch(r"dev.py: needs Python 3.10 or newer; this is 3.9 .*\n", result.stderr)


def test_python_without_ensurepip_gets_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dev.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(dev.SetupError, match="python3-venv"):
        dev.check_python()


# The cache folder and its key


def test_cache_folder_of_each_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert dev.cache_root() == tmp_path / "cache" / "asyncdiff"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(dev.Path, "home", lambda: tmp_path)
    monkeypatch.setattr(dev.sys, "platform", "linux")
    assert dev.cache_root() == tmp_path / ".cache" / "asyncdiff"
    monkeypatch.setattr(dev.sys, "platform", "darwin")
    assert dev.cache_root() == tmp_path / "Library" / "Caches" / "asyncdiff"


def test_key_changes_with_what_is_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = dev.environment_folder("0.30.0")
    assert usual == dev.environment_folder("0.30.0")
    others = {dev.environment_folder("0.27.0")}
    for name, value in (
        ("TORCH", ("torch===2.14.0",)),
        ("TOOLS", ("pytest==9.3.0",)),
        ("HOST_VERSIONS", {"0.30.0": ("2.6.0", "another hash")}),
        ("runtime_requirements", lambda: ["cloudpickle>=4"]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(dev, name, value)
            others.add(dev.environment_folder("0.30.0"))
    with monkeypatch.context() as patch:
        patch.setattr(dev.sysconfig, "get_config_var", lambda _: ".cpython-314-darwin.so")
        others.add(dev.environment_folder("0.30.0"))
    assert len(others) == 6 and usual not in others


def test_requirements_are_those_of_the_project_file() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((dev.REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dependencies"] == dev.runtime_requirements()


# Finished or not


def test_second_call_builds_nothing(builds: list[Path]) -> None:
    environment = dev.managed_environment(dev.DEFAULT_HOST)
    assert environment == dev.managed_environment(dev.DEFAULT_HOST)
    assert builds == [dev.environment_folder(dev.DEFAULT_HOST)]
    assert not (builds[0] / "tmp").exists()


def test_interrupted_set_up_is_built_again(
    builds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dev, "fetch_comfyui", interrupted)
        with pytest.raises(KeyboardInterrupt):
            dev.managed_environment(dev.DEFAULT_HOST)
    left_over = builds[0] / "venv" / "half-written"
    left_over.touch()
    dev.managed_environment(dev.DEFAULT_HOST)
    assert len(builds) == 2
    assert not left_over.exists()


@pytest.mark.parametrize("damage", ["empty marker", "other marker", "no interpreter"])
def test_damaged_environment_is_built_again(builds: list[Path], damage: str) -> None:
    environment = dev.managed_environment(dev.DEFAULT_HOST)
    if damage == "no interpreter":
        environment.python.unlink()
    else:
        text = "" if damage == "empty marker" else json.dumps({"comfyui": "0.1"})
        dev.marker(environment).write_text(text)
    dev.managed_environment(dev.DEFAULT_HOST)
    assert len(builds) == 2


# The lock

HOLD = """
import sys, time
sys.path.insert(0, {repo!r})
import dev
from pathlib import Path
with dev.locked(Path(sys.argv[1])):
    print("held", flush=True)
    {then}
"""


@contextlib.contextmanager
def holder(path: Path, then: str):
    """Another process that holds the lock."""
    code = HOLD.format(repo=str(dev.REPO), then=then)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_lock_waits_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lock"
    with holder(path, "time.sleep(1)"):
        started = time.monotonic()
        with dev.locked(path):
            assert time.monotonic() - started > 0.5
    assert capsys.readouterr().out.count("Waiting for another dev.py") == 1


def test_lock_of_a_killed_process_is_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lock"
    with holder(path, "time.sleep(600)") as process:
        process.kill()
        process.wait()
        with dev.locked(path):
            pass
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(os.name == "nt", reason="Windows ties the lock to the process")
def test_lock_is_held_by_an_orphaned_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lock"
    step = (
        f"dev.run_step([sys.executable, '-c', 'import time; time.sleep(2)'], Path({str(path)!r}))"
    )
    with holder(path, step) as process:
        time.sleep(0.5)
        process.kill()
        process.wait()
        with dev.locked(path):
            pass
    assert "Waiting for another dev.py" in capsys.readouterr().out


def test_call_that_waited_does_not_build(
    builds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def locked(_: Path):
        dev.build(dev.managed_environment_paths(dev.DEFAULT_HOST), dev.DEFAULT_HOST)
        yield

    monkeypatch.setattr(dev, "locked", locked)
    dev.managed_environment(dev.DEFAULT_HOST)
    assert len(builds) == 1


# What can stand in the way


def test_too_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = dev.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(dev.shutil, "disk_usage", lambda _: usage._replace(free=3 * 10**9))
    with pytest.raises(dev.SetupError, match=r"3\.0 GB are free .* GB are needed"):
        dev.check_disk(tmp_path)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError(...)'\n"
            "ERROR: No matching distribution found for torch===2.13.0\n",
            "cannot be reached",
        ),
        ("ERROR: Could not install packages due to an OSError: No space left on device", "full"),
        ("ERROR: No matching distribution found for torch===2.13.0\n", "another Python"),
        ("ERROR: one\nERROR: two\nnote: three\n", "^two .*setup.log"),
        ("", "no message"),
    ],
)
def test_failed_step_becomes_one_line(tmp_path: Path, said: str, line: str) -> None:
    code = f"import sys; sys.stderr.write({said!r}); sys.exit(1)"
    with pytest.raises(dev.SetupError, match=line) as caught:
        dev.run_step([sys.executable, "-c", code], tmp_path / "tmp")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "setup.log").read_text() == said


def test_steps_are_a_line_each_and_the_log_has_the_rest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def step(*lines: str, status: int = 0) -> None:
        code = f"import sys; print(*{lines!r}, sep='\\n'); sys.exit({status})"
        with dev.progress(f"[{lines[0]}]"):
            dev.run_step([sys.executable, "-c", code], tmp_path / "tmp")

    step("first", "Collecting this", "Collecting that")
    with pytest.raises(dev.SetupError, match=r"^broken .*setup.log"):
        step("second", *map(str, range(100)), "ERROR: broken", status=1)
    shown = capfd.readouterr()
    assert re.fullmatch(r"\[first\] \(\d+ s\)\n\[second\] \n", shown.out)
    tail = shown.err.split()
    assert tail == [*map(str, range(101 - dev.TAIL_LINES, 100)), "ERROR:", "broken"]
    log = (tmp_path / "setup.log").read_text().split("\n")
    assert log == [
        *("first", "Collecting this", "Collecting that", "second"),
        *map(str, range(100)),
        *("ERROR: broken", ""),
    ]


def test_unreachable_index_ends_the_call_with_one_line(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    result = run("python", "-c", "pass")
    assert result.returncode == 2
    assert re.fullmatch(r"dev.py: .*asyncdiff.*\n", result.stderr)


def test_only_comfyui_is_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "release.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in (
            "release-1/setup.py",
            "release-1/vendor/ComfyUI/main.py",
            "release-1/vendor/ComfyUI/comfy/sd.py",
            "release-1/vendor/other/file.py",
        ):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    dev.unpack_comfyui(archive, tmp_path / "out")
    files = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.py"))
    assert files == ["comfy/sd.py", "main.py"]


# Somebody's own ComfyUI


def test_folder_that_is_not_comfyui(tmp_path: Path) -> None:
    for result in (
        run("test", "--comfyui", str(tmp_path)),
        run("serve", COMFYUI_PATH=str(tmp_path)),
    ):
        assert result.returncode == 2
        assert re.fullmatch(r"dev.py: .* is not a ComfyUI folder.*\n", result.stderr)


@pytest.mark.parametrize("place", ["venv/bin/python", ".venv/bin/python", ""])
def test_interpreter_of_an_existing_comfyui(tmp_path: Path, place: str) -> None:
    if place:
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).touch()
    assert dev.comfyui_python(tmp_path) == (tmp_path / place if place else Path(sys.executable))


def test_missing_packages_are_named(tmp_path: Path) -> None:
    (tmp_path / "main.py").touch()
    requirements = ["torch", "pytest-timeout==2.4.0", "no-such-package>=1", "nor-this"]
    with pytest.raises(dev.SetupError) as caught:
        dev.existing_environment(str(tmp_path), requirements)
    assert str(caught.value).endswith('-m pip install "no-such-package>=1" "nor-this"')
    environment = dev.existing_environment(str(tmp_path), requirements[:2])
    assert environment == dev.Environment(Path(sys.executable), tmp_path, managed=False)


# Commands


def test_foreign_arguments_are_passed_on() -> None:
    options, rest = dev.parse(["test", "-k", "not slow", "--comfyui", "X", "tests/unit", "-x"])
    assert (options.command, options.comfyui) == ("test", "X")
    assert rest == ["-k", "not slow", "tests/unit", "-x"]
    options, rest = dev.parse(["serve", "--port", "9000", "--comfy-api-base", "here"])
    assert (options.comfyui, rest) == (None, ["--port", "9000", "--comfy-api-base", "here"])
    _, rest = dev.parse(["python", "-m", "benchmarks.x", "--comfyui", "Y", "--help"])
    assert rest == ["-m", "benchmarks.x", "--comfyui", "Y", "--help"]


def test_demo_takes_no_foreign_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        dev.parse(["demo", "--ouput", "X"])
    assert caught.value.code == 2
    assert "--ouput" in capsys.readouterr().err


def test_demo_folder_is_relative_to_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[str] = []
    monkeypatch.setattr(dev, "hand_over", lambda _, arguments: handed.extend(arguments) or 0)
    monkeypatch.chdir(tmp_path)
    environment = dev.Environment(Path("python"), Path("ComfyUI"), managed=True)
    dev.run_demo(environment, *dev.parse(["demo", "--out", "here", "--devices", "cpu,cpu"]))
    assert handed[:4] == ["-m", "demo.run", "--comfyui", "ComfyUI"]
    assert handed[4:] == ["--out", str(tmp_path / "here"), "--devices", "cpu,cpu"]


def test_lint_comes_first_and_only_without_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(
        dev.subprocess, "call", lambda command, **_: ran.append(command[2]) or (ran[-1] == "mypy")
    )
    monkeypatch.setattr(dev, "hand_over", lambda _, arguments: ran.append(arguments[1]) or 0)
    environment = dev.Environment(Path("python"), Path("ComfyUI"), managed=True)
    options, rest = dev.parse(["test"])
    assert dev.run_tests(environment, options, rest) == 1
    assert ran == ["ruff", "ruff", "mypy"]
    ran.clear()
    assert dev.run_tests(environment, options, ["-x"]) == 0
    assert ran == ["pytest"]


def test_the_nodes_are_checked_as_a_part_of_the_pack(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their imports lead out of the folder that they are in."""
    ran: list[tuple[list[str], Path]] = []
    monkeypatch.setattr(
        dev.subprocess, "call", lambda command, cwd, **_: ran.append((command, cwd)) or 0
    )
    environment = dev.Environment(Path("python"), Path("ComfyUI"), managed=True)
    assert dev.run_lint(environment, *dev.parse(["lint"])) == 0
    (*_, (whole, folder), (command, above)) = ran
    assert (whole[2:], folder) == (["mypy"], dev.REPO)
    assert command[-2:] == ["-p", "asyncdiff.nodes"]
    assert above.is_relative_to(cache)
    assert (above / "asyncdiff").resolve() == dev.REPO


def test_managed_python_sees_its_own_packages_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    for managed in (True, False):
        environment = dev.Environment(Path("python"), Path("ComfyUI"), managed)
        assert ("PYTHONPATH" in dev.variables(environment)) is not managed
