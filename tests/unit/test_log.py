"""The folders with logs of groups that broke: the last ones stay."""

import os
from pathlib import Path

from asyncdiff_core.log import prune_folders


def test_the_last_ones_and_those_in_use_stay(tmp_path: Path) -> None:
    folders = [tmp_path / f"asyncdiff-{number}" for number in range(12)]
    for age, folder in enumerate(folders):
        folder.mkdir()
        (folder / "worker-0.log").write_text("what happened")
        os.utime(folder, (age, age))
    (tmp_path / "something else").mkdir()
    prune_folders(tmp_path, in_use=[folders[1]], keep=8)
    left = {path.name for path in tmp_path.iterdir()}
    kept = [folders[1], *folders[4:]]
    assert left == {folder.name for folder in kept} | {"something else"}


def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    prune_folders(tmp_path / "temp", in_use=[])
