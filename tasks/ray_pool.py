"""A pool of actors on a Ray cluster, whose lost work runs again elsewhere.

Ray's own retries (`max_restarts`, `max_task_retries`) bind an actor's work to that actor: where it cannot start again,
its work waits although others are idle. Here the driver hands out one job at a time, and gives the job of an actor that
died, or whose node did, to the next that is free. A job's result is taken once.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from operator import length_hint
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from crosslens.adapters import CrosslensError, InputError

from .ray_cluster import last_line, ray_module

MOST_TRIES = 3
"""How often a job is tried, and an actor started in one place, before it is given up."""
_LOOK = 0.25  # seconds between two looks at what has finished
_COUNT = 2.0  # seconds between two looks at which places there are
_PATIENCE = 60.0  # seconds without any place before the work is given up, and without an actor before that is said
_BROKEN = ("failed to import", "ModuleNotFoundError", "ImportError")  # in Ray's words, what no second try mends
_STOPS = 1.5  # seconds that actors get to stop by themselves

Job = TypeVar("Job")


@dataclass(frozen=True)
class Lost:
    """In place of a result: why a job was given up."""

    tries: int
    reason: str


@dataclass
class _Task(Generic[Job]):
    job: Job
    number: int
    tries: int = 0


@dataclass
class _Member(Generic[Job]):
    actor: Any
    ref: Any  # what it is doing; None: it is idle
    since: float
    task: _Task[Job] | None = None  # None while it starts


class Pool(Generic[Job]):
    """Actors that work on jobs, each on one at a time.

    Args:
        seats: gives the places where an actor may be, each with what `start` is to know of it; asked again and again.
        start: makes the actor of a place; its method `ready` is called first.
        call: hands an actor a job; gives the reference of the result.
        ready: gets what `ready` returned; may raise.
        stop: asks an actor to give up its job; gives a reference. None: it is killed.
        beat: gets (actor, job) of each that works, at each look.
        note: gets what a person should know.
    """

    def __init__(
        self,
        seats: Callable[[], dict[Hashable, Any]],
        start: Callable[[Any], Any],
        call: Callable[[Any, Job], Any],
        *,
        ready: Callable[[Any], None] = lambda found: None,
        stop: Callable[[Any], Any] | None = None,
        beat: Callable[[Any, Job], None] = lambda actor, job: None,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._ray = ray_module()
        self._seats, self._start, self._call, self._ready = seats, start, call, ready
        self._stop, self._beat, self._note = stop, beat, note
        self._members: dict[Hashable, _Member[Job]] = {}
        self._places: dict[Hashable, Any] = {}
        self._failed: dict[Hashable, int] = {}
        self._counted, self._seen = float("-inf"), time.monotonic()
        self._said = False  # or nothing to say: an actor has started

    def run(self, jobs: Iterable[Job], *, ahead: int | None = None) -> Iterator[tuple[Job, Any, int]]:
        """(job, its result or `Lost`, how often it was tried), as they finish.

        Args:
            jobs: taken one by one, as actors become free.
            ahead: no job is begun that is so many behind the first unfinished one.

        Raises:
            CrosslensError: that a job raised, or no actor can be had.
        """
        source, again, working = enumerate(jobs), deque[_Task[Job]](), dict[int, _Task[Job]]()
        left = length_hint(jobs, 1 << 30)
        taken, more = 0, True
        while more or again or working:
            self._fill(left)
            for member in self._members.values():
                if member.ref is not None:
                    continue
                if again:
                    task = again.popleft()
                elif more and (ahead is None or taken < min((*working, taken)) + ahead):
                    if (entry := next(source, None)) is None:
                        more = False
                        break
                    taken, task = entry[0] + 1, _Task(entry[1], entry[0])
                else:
                    break
                working[task.number] = task
                task.tries += 1
                member.task, member.ref = task, self._call(member.actor, task.job)
            for task, found in self._look():
                if isinstance(found, Lost) and task.tries < MOST_TRIES:
                    again.append(task)
                    continue
                del working[task.number]
                left -= 1
                yield task.job, found, task.tries

    def _fill(self, most: int) -> None:
        """Start actors in places that have none."""
        now = time.monotonic()
        if now - self._counted >= _COUNT:
            self._counted, self._places = now, self._seats()
            if self._places:
                self._seen = now
            elif now - self._seen > _PATIENCE:
                raise InputError("no node of the cluster is left that could do the work; what was finished is kept")
            for seat in [s for s, member in self._members.items() if member.ref is None and s not in self._places]:
                self._drop(seat)
        for seat, known in self._places.items():
            if seat not in self._members and len(self._members) < most:
                actor = self._start(known)
                self._members[seat] = _Member(actor, actor.ready.remote(), now)
        if not self._said and any(now - member.since > _PATIENCE for member in self._members.values()):
            self._said = True
            self._note("the cluster has had no free place for a minute: others use it; waiting")

    def _look(self) -> list[tuple[_Task[Job], Any]]:
        """Wait for a moment; what has come to an end in it."""
        seats = {member.ref: seat for seat, member in self._members.items() if member.ref is not None}
        if not seats:
            time.sleep(_LOOK)
            return []
        done, _ = self._ray.wait(list(seats), num_returns=len(seats), timeout=0)
        if not done:
            done, _ = self._ray.wait(list(seats), timeout=_LOOK)
        ended = []
        for ref in done:
            seat = seats[ref]
            member = self._members[seat]
            task, member.task, member.ref = member.task, None, None
            try:
                found = self._get(ref)
            except self._ray.exceptions.RayTaskError:
                raise  # a mistake in what was called: elsewhere it would be the same
            except self._ray.exceptions.RayError as error:
                self._drop(seat)
                if task is None:
                    self._not_started(seat, error)
                    continue
                found = Lost(task.tries, last_line(str(error)))
            if task is None:
                self._said = True
                self._ready(found)
                self._failed.pop(seat, None)
            else:
                ended.append((task, found))
        for member in self._members.values():
            if member.task is not None:
                self._beat(member.actor, member.task.job)
        return ended

    def _get(self, ref: Any) -> Any:
        """A result; an error of the job itself is raised as it was there."""
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, CrosslensError):
                raise error.cause from None
            raise

    def _not_started(self, seat: Hashable, error: Exception) -> None:
        if seat not in self._seats():
            return  # its node is gone
        self._failed[seat] = self._failed.get(seat, 0) + 1
        if any(word in str(error) for word in _BROKEN) or self._failed[seat] >= MOST_TRIES:
            raise InputError(
                f"no worker can be started on node {seat}: {last_line(str(error))}; every node needs the same Python "
                "with the same crosslens[ray] and libraries"
            ) from error

    def _drop(self, seat: Hashable) -> None:
        """Without this, an actor that cannot be reached for a moment would go on with what now runs elsewhere."""
        actor = self._members.pop(seat).actor
        with contextlib.suppress(Exception):
            self._ray.kill(actor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all actors, and what they do."""
        members, self._members = list(self._members.values()), {}
        if self._stop is not None:
            with contextlib.suppress(Exception):
                refs = [self._stop(member.actor) for member in members if member.task is not None]
                if refs:
                    self._ray.wait(refs, num_returns=len(refs), timeout=_STOPS)
        for member in members:
            with contextlib.suppress(Exception):
                self._ray.kill(member.actor)
