"""Writers of one SQLite file in this process take turns in order of arrival, and share a COMMIT.

SQLite lets one connection write at a time, and the others poll, in no order. And each COMMIT waits for the disk. So
writers queue here, and the first in the queue, the leader, runs the statements of all that wait on its own connection,
in order, in one transaction. After the COMMIT each has its answer.

A turn, and a place in the queue, are objects in the frame of their thread. So whatever exception ends that frame ends
the turn and frees the place.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from typing import Any, TypeAlias

from agentdb.errors import OutcomeUnknownError

Answer: TypeAlias = tuple[Any, BaseException | None]
Connection: TypeAlias = Any  # of connections/sqlite.py, which imports this module
Run: TypeAlias = Callable[[Connection], Any]

_LOOK_SECONDS = 0.25  # in case an asynchronous exception prevented a wake-up


class Turn:
    """The right to write, until ``end()`` or until nothing refers to it, because its thread had an exception."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def end(self) -> None:
        """Let the next writer write; does nothing if the turn has ended."""
        self._turns.end(self)


class _Writer:
    """A thread in the queue, with a statement to run, or waiting for a turn."""

    def __init__(self, run: Run | None, group: object) -> None:
        self.run = run
        self.group = group  # only writers of one group may share a COMMIT
        self.answer: Answer | None = None
        self.batch: _Batch | None = None  # which runs the statement
        # Held while the thread sleeps: releasing it once is the wake-up.
        self.wake: threading.Lock = threading.Lock()
        self.wake.acquire()

    def tell(self) -> None:
        """Wake the thread, which then looks what has changed."""
        with suppress(RuntimeError):  # it was woken, but has not looked yet
            self.wake.release()


def _nobody() -> None:
    return None


class Turns:
    """The queue of the writers of one file.

    The queue refers to its writers weakly, and to the turn: their threads own them.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start empty; in the child of a fork the other threads do not exist."""
        self._lock = threading.Lock()
        self._queue: deque[weakref.ref[_Writer]] = deque()
        self._turn: Callable[[], Turn | None] = _nobody

    def take(self, seconds: float) -> Turn:
        """Wait for the turn of a transaction; after ``seconds`` raise SQLite's error for a locked database."""
        turn = self._free_turn()
        if turn is None:
            turn = self._wait(_Writer(None, None), seconds)
            assert turn is not None
        return turn

    def write(
        self, connection: Connection, run: Run, seconds: float, *, apart: bool
    ) -> Any:
        """Run one statement, and return its result when it is on the disk.

        Unless ``apart``, it may run on another connection of the same engine, in one transaction with other statements.
        """
        turn = self.take(seconds) if apart else self._free_turn()
        try:
            # The turn is this thread's: no thread switch, and the statement is its own COMMIT.
            if turn is not None:
                result = run(connection)
                connection.confirm()
                return result
            writer = _Writer(run, connection.engine)
            turn = self._wait(writer, seconds)
            if turn is not None:
                _Batch(self, turn, connection, writer).commit()
        finally:
            if turn is not None:
                turn.end()  # an exception's traceback may keep this frame alive for long
        assert writer.answer is not None
        result, error = writer.answer
        if error is not None:
            raise error
        return result

    def _free_turn(self) -> Turn | None:
        """Return a turn if nobody writes, and nobody waits who came earlier."""
        with self._lock:
            is_free = self._turn() is None and self._first() is None
            return self._new_turn() if is_free else None

    def _new_turn(self) -> Turn:
        # Only the frame that writes refers to it. If that frame ends, however it ends, the turn dies, and the
        # callback wakes the next writer; no thread has to give it back.
        turn = Turn(self)
        self._turn = weakref.ref(turn, self._tell_first)
        return turn

    def end(self, turn: Turn) -> None:
        with self._lock:
            if self._turn() is turn:
                self._turn = _nobody
        self._tell_first()

    def _tell_first(self, _: object = None) -> None:
        """Wake the writer whose turn is next."""
        # Called wherever a turn is dropped, perhaps inside the lock, so it does not take the lock. The queue may
        # change meanwhile; whoever changes it looks at the turn afterwards.
        if not self._queue:
            return
        with suppress(RuntimeError):
            for reference in list(self._queue):
                writer = reference()
                if writer is not None:
                    writer.tell()
                    return

    def _first(self) -> _Writer | None:
        """With the lock: return the first writer whose thread is still in the queue."""
        while self._queue:
            writer = self._queue[0]()
            if writer is not None:
                return writer
            self._queue.popleft()  # its thread has left with an exception
        return None

    def _wait(self, writer: _Writer, seconds: float) -> Turn | None:
        """Wait until the writer is first and nobody writes, and return its turn; None if it got an answer meanwhile."""
        until = time.monotonic() + seconds
        reference = weakref.ref(writer)
        try:
            # Inside the try: an exception right after append() must take it out again: a traceback may keep the
            # writer alive, and it would block those behind it.
            with self._lock:
                self._queue.append(reference)
            # Three ends: it is first and leads; a leader has run its statement; its leader's thread died, and then
            # whoever notices first gives the answers that exist.
            while True:
                turn = self._turn_of(writer)
                if turn is not None or writer.answer is not None:
                    return turn
                batch = writer.batch
                if batch is not None and batch.is_left():
                    batch.give_answers()
                elif batch is None and time.monotonic() > until:
                    raise sqlite3.OperationalError("database is locked")
                else:
                    writer.wake.acquire(timeout=_LOOK_SECONDS)
        except BaseException:
            with self._lock, suppress(ValueError):
                self._queue.remove(reference)
            raise

    def _turn_of(self, writer: _Writer) -> Turn | None:
        """Return a turn if nobody writes and the writer is the next; it leaves the queue then."""
        with self._lock:
            if writer.answer is not None or writer.batch is not None:
                return None
            if self._turn() is not None or self._first() is not writer:
                return None
            self._queue.popleft()
            return self._new_turn()

    def join(self, batch: _Batch) -> None:
        """Let writers at the head of the queue join whose statements may run with the leader's."""
        writers = batch.writers
        group = writers[0].group
        with self._lock:
            first = self._first()
            # In order, so not past one that cannot join: a transaction, or the statement of another Db.
            while first is not None and first.group is group:
                writers.append(first)
                first.batch = batch
                self._queue.popleft()
                first = self._first()

    def put_back(self, writers: list[_Writer], batch: _Batch) -> None:
        """Put writers whose statements were rolled back at the head of the queue again."""
        with self._lock:
            # One that gave up meanwhile has left; the others keep their order, in front of those that came later.
            for writer in reversed(writers):
                if writer.batch is batch:
                    writer.batch = None
                    self._queue.appendleft(weakref.ref(writer))


class _Batch:
    """One transaction with the statements of several writers, run by the first."""

    def __init__(
        self, turns: Turns, turn: Turn, connection: Connection, leader: _Writer
    ) -> None:
        self._turns = turns
        self._turn = weakref.ref(turn)  # which ends with the leader's frame
        self._connection = connection
        self.writers: list[_Writer] = [leader]
        self._results: list[Answer] = []
        self._committed: list[Any] = []  # has an item once COMMIT has returned
        self._failure: Exception | None = None
        self._settling = threading.Lock()

    def commit(self) -> None:
        """Run all statements and commit; then the leader has its answer, or this raises what rolled them back."""
        try:
            # An asynchronous exception can come between any two lines of Python, also while an earlier one is handled.
            # sqlite3's own context manager is C: nothing comes between the end of its body and its ROLLBACK, so the
            # lock of the file never stays with a thread that has gone on.
            with self._connection.raw as raw:
                self._run(raw)
        finally:
            self.give_answers()

    def _run(self, raw: sqlite3.Connection) -> None:
        try:
            raw.execute("BEGIN IMMEDIATE")
            # After BEGIN IMMEDIATE, which may wait for another process: all that came meanwhile can join.
            self._turns.join(self)
            self._results += map(self._result, self.writers)
            self._connection.look()
            # A single step for Python, so that the list says whether it was committed, whatever exception comes.
            self._committed.extend(map(raw.execute, ("COMMIT",)))
        except sqlite3.Error as error:
            # Still in a transaction: nothing is stored for sure, and the followers can be run again by the next
            # leader. No longer: SQLite has ended it. After a COMMIT it may have written to the log, so each gets the
            # error.
            if not raw.in_transaction:
                self._failure = error
            raise

    def is_left(self) -> bool:
        """Whether the leader's thread left with an exception before everybody had an answer."""
        turn = self._turn()
        return turn is None or self._turns._turn() is not turn

    def give_answers(self) -> None:
        """Give each writer its answer, or its place in the queue; if this is interrupted, any of them repeats it.

        Runs nothing on the connection, which is the leader's: its next use rolls back what is not committed.
        """
        with self._settling:
            if self._committed:
                # Look whether the file was moved meanwhile, once for all: each stat() waits for the interpreter again.
                try:
                    self._connection.confirm()
                except OutcomeUnknownError as error:
                    self._failure = error
            followers = self.writers[1:]
            answers = self._results
            # A leader that was interrupted between two statements has fewer results than writers, and has not
            # committed.
            is_complete = len(answers) == len(self.writers)
            if self._failure is not None and is_complete:
                # The COMMIT has failed, or went into a file that was moved: only the error says what may be stored.
                # Each gets an error of its own, because each adds its traceback to it.
                answers = [(None, copy(self._failure)) for _ in self.writers]
            elif not self._committed:
                self._turns.put_back(followers, self)
                answers = []
            for writer, answer in zip(self.writers, answers, strict=False):
                writer.answer = answer
                writer.batch = None
            for writer in followers:
                writer.tell()

    def _result(self, writer: _Writer) -> Answer:
        """Run the writer's statement in the open transaction."""
        assert writer.run is not None
        try:
            return writer.run(self._connection), None
        except sqlite3.Error as error:
            if not self._connection.in_transaction():
                raise  # SQLite has rolled everything back, for example because the disk is full
            # SQLite rolls a failed statement back alone; that is its writer's error, and the others go on.
            return None, error


_of_files: weakref.WeakValueDictionary[str, Turns] = weakref.WeakValueDictionary()
_finding = threading.Lock()


def turns_of(path: str) -> Turns:
    """Return the process's queue for the file at the path."""
    path = os.path.realpath(path)
    with _finding:
        turns = _of_files.get(path)
        if turns is None:
            turns = _of_files[path] = Turns()
        return turns


def _reset_in_child() -> None:
    """After a fork: no thread of the parent is in a queue here, and none holds a lock."""
    global _finding
    _finding = threading.Lock()
    for turns in list(_of_files.values()):
        turns.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_in_child)
