"""A storage that is full, closed to us or does not answer: try again for a while, then say so by name.

`Patience.through` is for whatever reads or writes where a study lies. What it gives up on is a `StorageError`: no fault
of a trial's, nor of the record, which says what it said before. The study ends early and can be resumed.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from raytuner.record.journal import Journal, Row
    from raytuner.trial import Reports

_log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_S = 30.0
_FIRST_S = 0.1  # the pause after the first failure; each is twice the one before
_LONGEST_S = 5.0
_SLICE_S = 0.2  # how soon it is noticed that patience is at an end

_OUTAGES = frozenset(
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG"),  # full
        *("EACCES", "EPERM", "EROFS"),  # closed
        *("EIO", "EREMOTEIO", "ENXIO", "ENODEV", "ESTALE", "ETIMEDOUT", "EBUSY", "EAGAIN", "ENOLCK"),  # not there
        *("ENOTCONN", "ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "EPIPE", "ESHUTDOWN"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET"),
        *("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"),
    )
    if hasattr(errno, name)
)


class StorageError(Exception):
    """The storage failed, and went on failing. The message names what was to be read or written, and the error."""


def is_outage(error: OSError) -> bool:
    """Whether an error says that the storage failed, and not that something else was expected there.

    Object stores' errors, as pyarrow raises them, have no number.
    """
    return error.errno in _OUTAGES or (error.errno is None and type(error) is OSError)


def always(error: OSError) -> bool:
    """Where nobody but us has anything to do with the files, whatever goes wrong is the storage."""
    return True


class Patience:
    """For one thread: how long a storage may fail before we give up.

    ``most_s``: seconds from the first failure on, or who says how many it is now. They are counted over all that is
    tried until something succeeds: the second of two things that fail does not wait as long again.
    """

    def __init__(
        self,
        most_s: float | Callable[[], float] = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._most_s: Callable[[], float] = most_s if callable(most_s) else lambda: most_s
        self._clock = clock
        self._sleep = sleep
        self._since: float | None = None  # when the storage began to fail

    def through(self, act: Callable[[], T], where: object, fails: Callable[[OSError], bool] = is_outage) -> T:
        """Do something to the storage; again, as long as it ``fails``. Raises `StorageError` that names ``where``."""
        pause = _FIRST_S
        while True:
            try:
                found = act()
            except OSError as error:
                if not fails(error):
                    raise
                self._endure(error, where, pause)
                pause = min(2 * pause, _LONGEST_S)
            else:
                if self._since is not None:
                    _log.warning("%s: the storage answers again", where)
                    self._since = None
                return found

    def _endure(self, error: OSError, where: object, pause: float) -> None:
        """Wait, or give up."""
        now = self._clock()
        if self._since is None:
            self._since = now
            if self._most_s() > 0:
                _log.warning("%s: the storage fails (%s); trying again for %g s", where, error, self._most_s())
        until = now + pause
        while (now := self._clock()) < until:
            if now - self._since >= self._most_s():
                raise StorageError(f"{where}: {error} (tried again for {now - self._since:.0f} s)") from error
            self._sleep(min(_SLICE_S, until - now))


class PatientJournal:
    """A journal whose turns are written with patience (`raytuner.driver.Recorder`).

    A turn that cannot be written has caused nothing yet. What is left of it is cut off before it is tried again.
    """

    def __init__(self, journal: Journal, patience: Patience, where: object) -> None:
        self._journal = journal
        self._patience = patience
        self._where = where
        self.rows = journal.rows
        self.last_steps = journal.last_steps

    def commit(self, rows: Sequence[Row], reports: Sequence[Reports]) -> None:
        """`Journal.commit`; `StorageError` where that is not to be had."""
        tried = False

        def attempt() -> None:
            nonlocal tried
            if tried:
                self._journal.recover()
            tried = True
            self._journal.commit(rows, reports)

        self._patience.through(attempt, self._where, always)
