"""`python -I -S reaper.py LOG COMMAND...`: starts a worker, keeps the end of what it prints, ends whatever it started.

A process between the runner and each worker, of the standard library alone, so that it starts in milliseconds. It ends
the worker when its own standard input closes, which happens however the runner ends, kill -9 included. Then, and when
the worker ends by itself, it ends all descendants of the worker: on Linux also those that are in a session of their
own or have lost their parent, since it is the subreaper that they fall to (prctl(2), PR_SET_CHILD_SUBREAPER);
elsewhere those of the worker's process group. What asks another daemon to start a process, as `systemd-run` does, is
not caught.

It prints `pid N` when the worker has started, `ended N` when it has ended (negative: the signal), and `left N` if N
processes could not be ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable

Work = Callable[[list[str]], None]

_CAP = 1 << 20  # bytes of a log file; there are two of them, LOG.old and LOG
_CHUNK = 1 << 16
_PATIENCE = 5.0  # seconds for killed processes to be gone
_SUBREAPER, _PARENT_DEATH = 36, 1  # of prctl
LINUX = sys.platform == "linux"


class Log:
    """The last of what is written, at least `_CAP` bytes of it where there is as much; never more than twice that."""

    def __init__(self, path: str) -> None:
        self._path, self._size = path, 0
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

    def write(self, data: bytes) -> None:
        """A disk that is full loses the log, not the worker."""
        try:
            if self._size + len(data) > _CAP:
                os.replace(self._path, f"{self._path}.old")
                os.close(self._file)
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                self._size = 0
            self._size += os.write(self._file, data)
        except OSError:
            pass


def start(command: list[str], output: int, work: Work | None) -> int:
    """The worker, in a session of its own, printing to `output`; its process id."""
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        if LINUX:
            ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(70)
            with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
                file.write("1000")  # where memory runs out, the system kills the cell and not the runner
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash of gigabytes must not fill the disk
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if work is not None:
            work(command)
        os.execv(command[0], command)
    except BaseException as error:
        os.write(2, f"{command[0]} cannot be started: {error}\n".encode())
    os._exit(71)


def descendants() -> list[int]:
    """Process ids of all that this process has started, directly or not, and that still run (Linux)."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
            except OSError:
                continue  # it has just ended
            if state != b"Z":
                children.setdefault(int(parent), []).append(int(name))
    found, frontier = [], [os.getpid()]
    while frontier:
        frontier = [child for parent in frontier for child in children.get(parent, [])]
        found += frontier
    return found


def reap(worker: int) -> tuple[bool, int | None]:
    """Collect what has ended: whether children are left, and the worker's status if it is among them."""
    status = None
    while True:
        try:
            pid, raw = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False, status
        if pid == 0:
            return True, status
        if pid == worker:
            status = os.waitstatus_to_exitcode(raw)


def end_all(worker: int) -> tuple[int | None, int]:
    """Kill all there is: the worker's status if it had not been collected before, and how many would not end."""
    until, status = time.monotonic() + _PATIENCE, None
    while True:
        running = descendants() if LINUX else [-worker]
        for pid in running:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        left, found = reap(worker)
        status = found if status is None else status
        if not left:
            return status, 0
        if time.monotonic() > until:
            return status, len(running)
        time.sleep(0.002)


def drain(output: int, log: Log) -> None:
    """Keep what is still in the pipe, which nobody fills any more."""
    os.set_blocking(output, False)
    try:
        while data := os.read(output, _CHUNK):
            log.write(data)
    except BlockingIOError:
        pass


def main(path: str, command: list[str], work: Work | None = None) -> None:
    """Run the command; see the module.

    Args:
        work: ends the process that it is called in, and does there what the command would: the process has been forked
            from one that holds the program.
    """
    if LINUX:
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    signals, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    output, ends = os.pipe()
    log = Log(path)
    worker = start(command, ends, work)
    os.close(ends)
    print("pid", worker, flush=True)
    status, waited = None, [0, output, signals]
    while status is None:
        ready = select.select(waited, [], [])[0]
        if output in ready:
            if data := os.read(output, _CHUNK):
                log.write(data)
            else:
                waited.remove(output)  # it has closed its own output
        if signals in ready and signal.SIGTERM in os.read(signals, 512):
            break
        if 0 in ready:
            break
        _, status = reap(worker)
    last, left = end_all(worker)
    drain(output, log)
    print("ended", last if status is None else status)
    if left:
        print("left", left)
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
