"""A host that starts workers, says who they are, and waits to be killed. See test_failures.py."""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from asyncdiff_core.algorithm.schedule import AsyncSchedule
from harness.groups import LAUNCH, Gate, batched, make_group, pids_of, run


def main(folder: Path) -> None:
    gate = Gate(folder)
    calls = batched("chain", 2)
    idle = make_group("chain", 2, folder)
    busy = make_group("chain", 2, folder, gate=str(gate.folder), poll=gate.poll)
    # From a cold disk an import takes longer than anybody may wait for the end of a worker.
    (folder / "slow").mkdir()
    (folder / "slow" / "torch.py").write_text("import time\ntime.sleep(600)\n")
    importing = replace(LAUNCH, python_path=(str(folder / "slow"), *LAUNCH.python_path))
    starting = make_group("chain", 2, folder, launch=importing)
    for group in (idle, busy):
        group.start()
        run(group, AsyncSchedule(), calls)

    def say() -> None:
        starting.start()
        workers = {"idle": pids_of(idle), "busy": pids_of(busy), "starting": pids_of(starting)}
        if child := os.fork():
            workers["child"] = [child]
        else:  # it keeps all open files of its parent, as what another pack starts may
            time.sleep(600)
            os._exit(0)
        print(json.dumps(workers), flush=True)
        time.sleep(600)

    gate.close("unit-1")
    gate.then = say
    busy.begin_run(AsyncSchedule())
    busy.evaluate(*calls[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
