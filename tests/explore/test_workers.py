"""Who does the work: in order, again if it was lost, and never for ever."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from dynftrace_emu.errors import OptionError, ProtocolError
from dynftrace_emu.explore import workers
from dynftrace_emu.explore.workers import LostWorker, here, processes
from dynftrace_emu.export.missing_extra import MissingExtraError


def double(number: int) -> int:
    return 2 * number


def wait_for(other: str, number: int) -> int:
    """The first piece ends after the second one."""
    if number == 0:
        with open(other) as fifo:  # noqa: PTH123
            fifo.read()
    elif number == 1:
        with open(other, "w") as fifo:  # noqa: PTH123
            fifo.write("done")
    return number


def die_once(marker: str, number: int) -> int:
    if number == 3 and not os.path.exists(marker):  # noqa: PTH110
        open(marker, "w").close()  # noqa: PTH123
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die(_number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def refuse(number: int) -> int:
    raise ProtocolError(f"piece {number} is wrong")


def hang(_number: int) -> int:
    threading.Event().wait()
    return 0


def test_pieces_come_in_order_whoever_is_ready_first(tmp_path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with processes(2) as crew:
        assert list(crew.map(partial(wait_for, str(fifo)), range(5))) == list(range(5))


def test_this_process_does_a_piece_only_when_it_is_asked_for() -> None:
    done = []
    with here() as crew:
        results = crew.map(done.append, range(5))
        next(results)
        assert done == [0]


def test_what_a_worker_raises_is_raised_here() -> None:
    for crew in (here(), processes(1)):
        with crew, pytest.raises(ProtocolError, match="piece 0 is wrong"):
            list(crew.map(refuse, range(3)))


def test_work_of_a_process_that_dies_is_done_again(tmp_path) -> None:
    with processes(2) as crew:
        marker = str(tmp_path / "marker")
        assert list(crew.map(partial(die_once, marker), range(12))) == list(range(12))
        assert crew.lost >= 1


def test_processes_that_keep_dying_are_reported() -> None:
    with processes(2) as crew, pytest.raises(LostWorker, match="keep ending"):
        list(crew.map(die, range(4)))


def test_a_process_that_hangs_is_given_up_and_ended(monkeypatch) -> None:
    monkeypatch.setattr(workers, "_PATIENCE_S", 2.0)
    before = set(multiprocessing.active_children())
    with processes(1) as crew, pytest.raises(LostWorker, match="not answered for 2 s"):
        list(crew.map(hang, range(2)))
    for process in set(multiprocessing.active_children()) - before:
        process.join(20)
        assert not process.is_alive()


def test_processes_end_with_the_one_they_work_for(tmp_path) -> None:
    """Which is killed, and cannot tell them. The pipe is open as long as one of them is there."""
    code = (
        "import os, signal\n"
        "from dynftrace_emu.explore.workers import processes\n"
        "from tests.explore.test_workers import double\n"
        "if __name__ == '__main__':\n"
        "    crew = processes(2)\n"
        "    assert list(crew.map(double, range(8))) == [0, 2, 4, 6, 8, 10, 12, 14]\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    (tmp_path / "main.py").write_text(code)
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert process.communicate(timeout=60) == (b"", None)
    assert process.returncode == -signal.SIGKILL


def test_a_cluster_gives_what_one_process_gives() -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
        ) as local,
        workers.cluster(local.scheduler_address) as crew,
    ):
        assert crew.count == 2
        assert list(crew.map(double, range(50))) == [2 * n for n in range(50)]
        with pytest.raises(ProtocolError, match="piece 0 is wrong"):
            list(crew.map(refuse, range(3)))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense", "foo://bar"])
def test_a_cluster_that_is_not_there(address, monkeypatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "_CONNECT_S", 1)
    with pytest.raises(OptionError, match="no scheduler answers"):
        workers.cluster(address)


def test_without_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtraError, match=r"dynftrace-emu\[cluster\]"):
        workers.cluster("tcp://127.0.0.1:8786")
