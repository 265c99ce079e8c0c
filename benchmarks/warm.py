"""Workers that are forked from a process which has imported what all need, where to start each anew would take longer
than its work.

A cell still has a process of its own, with the same watch over it (`reaper.py`). What differs: PyTorch,
transformers and the tasks are there already, so that only what a backend itself imports is imported. The process that
forks runs no tensor and starts no thread, so there is nothing that a fork could tear (`tests/test_warm.py`). Full runs
start every process anew.
"""

from __future__ import annotations

import faulthandler
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess  # not on Windows

METHOD: Final = "forkserver"
PRELOADED = (
    "crosslens.benchmarks.cli",
    "crosslens.benchmarks.worker",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
)
_ALONE = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # of pyarrow, which pandas imports
}
_STARTING = threading.Lock()  # cells start in several threads, and the environment is the process's


def can_fork() -> bool:
    """Whether this system can; Windows cannot."""
    return METHOD in multiprocessing.get_all_start_methods()


class Forked:
    """What `subprocess.Popen` is for a process that was started anew."""

    def __init__(self, process: ForkServerProcess, stdin: int, stdout: int) -> None:
        self._process = process
        self.stdin: io.RawIOBase = io.FileIO(stdin, "w")
        self.stdout: io.BufferedReader = io.BufferedReader(io.FileIO(stdout, "r"))

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code.

        Raises:
            subprocess.TimeoutExpired: it has not ended yet.
        """
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("worker", timeout or 0.0)
        return code

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()


def start(job: Mapping[str, Any], folder: Path, env: Mapping[str, str]) -> Forked:
    """A reaper and its worker, as `launch.py` starts them, forked; they have the settings of `env`.

    Raises:
        OSError: the system starts no process.
    """
    context = multiprocessing.get_context(METHOD)
    context.set_forkserver_preload(list(PRELOADED))
    with _STARTING, _one_thread():
        forkserver.ensure_running()
    (their_in, our_in), (our_out, their_out) = context.Pipe(duplex=False), context.Pipe(duplex=False)
    process = context.Process(target=_reap, args=(their_in, their_out, str(folder), dict(env)))
    try:
        process.start()
    except EOFError as error:
        raise OSError("no process can be forked for a cell: that which forks them has ended") from error
    finally:
        their_in.close()
        their_out.close()
    stdin, stdout = os.dup(our_in.fileno()), os.dup(our_out.fileno())
    our_in.close()
    our_out.close()
    return Forked(process, stdin, stdout)


@contextmanager
def _one_thread() -> Iterator[None]:
    """What starts inside computes with one thread, and has no pool of others."""
    before = {name: os.environ.get(name) for name in _ALONE}
    os.environ.update(_ALONE)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _reap(stdin: Connection, stdout: Connection, folder: str, env: dict[str, str]) -> None:
    """Be the reaper of a worker that is forked from here."""
    from . import reaper

    os.setsid()  # Ctrl-C is for the runner
    for number, pipe in ((0, stdin), (1, stdout), (2, stdout)):
        os.dup2(pipe.fileno(), number)
    stdin.close()
    stdout.close()
    os.environ.update(env)
    reaper.main(str(Path(folder, "log")), [folder], _work)


def _work(command: list[str]) -> None:
    """Be the worker; ends the process as an interpreter would."""
    from threadpoolctl import threadpool_limits

    from .worker import main

    # the libraries have read what the environment was when they were imported
    threadpool_limits(int(os.environ["OMP_NUM_THREADS"]))
    signal.set_wakeup_fd(-1)  # the reaper's
    faulthandler.enable(2)
    code: Any = 0
    try:
        main(Path(command[0]))
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
