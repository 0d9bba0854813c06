"""The folders with logs of groups that broke: the last ones stay."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asyncdiff_core import log
from asyncdiff_core.log import last_line, leave_folder, make_folder, note_workers, prune_folders


def test_the_last_ones_and_those_in_use_stay(tmp_path: Path) -> None:
    folders = [make_folder(tmp_path) for _ in range(12)]
    for age, folder in enumerate(folders):
        (folder / "worker-0.log").write_text("what happened")
        leave_folder(folder, is_wreck=True)
        os.utime(folder, (age, age))
    (tmp_path / "something else").mkdir()
    prune_folders(tmp_path, in_use=[folders[1]], keep=8)
    left = {path.name for path in tmp_path.iterdir()}
    kept = [folders[1], *folders[4:]]
    assert left == {folder.name for folder in kept} | {"something else"}


def test_those_of_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process that runs, and of another machine; those of one that has ended go."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(log, "_machine", lambda: "another")
        make_folder(tmp_path)
    code = "from pathlib import Path; from asyncdiff_core.log import make_folder; import sys; "
    code += "print(make_folder(Path(sys.argv[1])), flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as other:
        assert other.stdin is not None and other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        mine = [make_folder(tmp_path) for _ in range(2)]
        for folder in mine:
            leave_folder(folder, is_wreck=True)
        prune_folders(tmp_path, in_use=[], keep=1)
        assert theirs.exists() and len(list(tmp_path.glob("asyncdiff-another-*"))) == 1
        assert sum(folder.exists() for folder in mine) == 1
        other.stdin.close()
        other.wait(30)
    prune_folders(tmp_path, in_use=mine, keep=1)
    assert len(list(tmp_path.glob("asyncdiff-another-*"))) == 1


def test_a_group_that_ended_well_leaves_nothing(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    leave_folder(folder, is_wreck=False)
    assert not folder.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no zombies")
def test_what_this_process_had_before_it_became_this_program(tmp_path: Path) -> None:
    """After an exec its workers are children that nobody waits for, and their folder nobody's."""
    before = make_folder(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    note_workers(before, [child.pid, os.getpid()])
    prune_folders(tmp_path, in_use=[])
    assert not before.exists()
    with pytest.raises(ChildProcessError):
        os.waitpid(child.pid, os.WNOHANG)


def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    prune_folders(tmp_path / "temp", in_use=[])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("first\nlast one\n\n  \n", "last one"),
        ("x" * 9000 + "\nerror: argument --user-directory", "error: argument --user-directory"),
        ("y" * 9000, "y" * 300 + " ..."),
        (
            "Fatal Python error: _PyRuntimeState_Init: memory allocation failed\n"
            "Python runtime state: unknown\n",
            "Fatal Python error: _PyRuntimeState_Init: memory allocation failed",
        ),
        (
            "MemoryError\n\nCurrent thread 0x00 (most recent call first):\n  <no frame>",
            "MemoryError",
        ),
    ],
)
def test_last_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "worker-0.log"
    path.write_text(text)
    assert last_line(path) == expected
    assert last_line(tmp_path / "none.log") == ""
