"""Who does the work: this process, several of it, or a cluster.

All of them are executors (:mod:`concurrent.futures`). What they are given are pure functions of
their arguments, so work that was lost with a process is simply done again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import AbstractContextManager
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from dynftrace_emu._version import __version__
from dynftrace_emu.errors import DynftraceError, OptionError
from dynftrace_emu.export.missing_extra import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.queues import SimpleQueue
    from types import TracebackType

__all__ = ["LostWorker", "Workers", "cluster", "here", "processes"]

_AHEAD = 3
"""Pieces of work handed out for each worker: one it does, and some that wait for it."""
_MAX_LOSSES = 3
_PATIENCE_S = 60.0
"""How long one piece of work may take. They are cut to take a second; user code may hang."""
_CONNECT_S = 10

T = TypeVar("T")
R = TypeVar("R")


class LostWorker(DynftraceError):
    """Processes that did the work have ended, again and again."""

    exit_code = 2


class Workers(AbstractContextManager["Workers"]):
    """Some workers, begun when they are first needed.

    :param begin: makes the executor; it may be asked for another one if that breaks.
    :param count: how many there are.
    :param lost: raised for work that went down with a worker.
    :param patience: seconds that a piece of work may take.
    :param close: ends the workers, whatever they do.
    """

    def __init__(
        self,
        begin: Callable[[], Executor],
        count: int,
        *,
        lost: tuple[type[Exception], ...] = (BrokenExecutor,),
        patience: float | None = None,
        close: Callable[[], object] = lambda: None,
    ) -> None:
        self.count = count
        self._losses, self._patience, self._close = lost, patience, close
        self.lost = 0
        """How often work had to be done again."""
        self._ahead = _AHEAD * count if count > 1 else 1
        self._begin = begin
        self._executor: Executor | None = None

    def map(self, function: Callable[[T], R], pieces: Iterable[T]) -> Iterator[R]:
        """``function`` of each piece, in order; pieces are handed out a few ahead.

        :raises LostWorker: the processes keep ending.
        """
        todo = iter(pieces)
        waiting: deque[tuple[T, Future[R]]] = deque()
        try:
            while True:
                while len(waiting) < self._ahead:
                    try:
                        piece = next(todo)
                    except StopIteration:
                        break
                    waiting.append((piece, self._submit(function, piece)))
                if not waiting:
                    return
                try:
                    result = waiting[0][1].result(self._patience)
                except TimeoutError:
                    raise LostWorker(
                        f"a worker has not answered for {self._patience:.0f} s: does a protocol "
                        "of your own hang?"
                    ) from None
                except self._losses:
                    self._begin_anew()
                    waiting = deque((p, self._submit(function, p)) for p, _ in waiting)
                    continue
                waiting.popleft()
                yield result
        finally:
            for _, future in waiting:
                future.cancel()

    def _submit(self, function: Callable[[T], R], piece: T) -> Future[R]:
        if self._executor is None:
            self._executor = self._begin()
        try:
            return self._executor.submit(function, piece)
        except self._losses:
            self._begin_anew()
            return self._submit(function, piece)

    def _begin_anew(self) -> None:
        self.lost += 1
        if self.lost > _MAX_LOSSES:
            raise LostWorker(
                "worker processes keep ending: is memory short (--jobs fewer, --states fewer), or "
                "does a protocol of your own end them?"
            )
        if self._executor is not None:
            self._executor.shutdown(wait=False)
        self._close()
        self._executor = self._begin()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False)
        self._close()


class _Here(Executor):
    """Does at once what it is given."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - it is raised where the result is asked for
            future.set_exception(error)
        return future


def here() -> Workers:
    """The calling thread alone."""
    return Workers(_Here, 1)


def processes(count: int) -> Workers:
    """That many processes of this program."""
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload([__name__, "dynftrace_emu.explore.explorer"])
    begun = context.SimpleQueue()

    def begin() -> Executor:
        return ProcessPoolExecutor(count, context, _begin_process, (begun,))

    def end() -> None:
        """Nothing they still do is wanted."""
        ours = set()
        while not begun.empty():
            ours.add(begun.get())
        for process in multiprocessing.active_children():
            if process.pid in ours:
                process.kill()

    return Workers(begin, count, patience=_PATIENCE_S, close=end)


def _begin_process(begun: SimpleQueue[int]) -> None:
    # Ctrl-C goes to all processes of a terminal; the first one decides what comes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begun.put(os.getpid())
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process that has nobody to work for any more, whatever ended that one, goes away."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def cluster(address: str) -> Workers:
    """The workers of a Dask cluster, which need this version of the package.

    :raises MissingExtraError: ``distributed`` is not installed.
    :raises OptionError: there is no scheduler at ``address``, or no worker.
    """
    try:
        distributed: Any = import_module("distributed")
    except ImportError:
        raise MissingExtraError("--cluster", "cluster") from None
    lost = (distributed.KilledWorker, distributed.comm.CommClosedError)
    try:
        client = distributed.Client(address, timeout=_CONNECT_S, set_as_default=False)
        versions = client.run(_version)
        count = sum(client.nthreads().values())
    except (OSError, ValueError, distributed.comm.CommClosedError) as error:
        raise OptionError(f"--cluster {address}: no scheduler answers ({error})") from None
    for worker, version in versions.items():
        if version != __version__:
            raise OptionError(
                f"--cluster {address}: {worker} has dynftrace-emu {version}, not {__version__}"
            )
    if not count:
        raise OptionError(f"--cluster {address}: it has no workers")
    return Workers(
        lambda: client.get_executor(pure=False),
        count,
        lost=lost,
        close=client.close,
    )


def _version() -> str:
    return __version__
