"""Publishing checkpoints beside training: `report` takes the files, a thread does the rest.

The rest is what takes long: hashes, bringing everything to disk or into an object store. At most `MOST` checkpoints
wait for it or are under way; who brings one more waits. They become visible in the order in which they were reported.
Also small ones: a disk that takes a hundred bytes in good keeping may need 30 ms for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

MOST = 2


class Uploads:
    """For the thread that runs trials; `put` has the other thread call what it is given.

    ``most``: how many may be under way; 0: whoever reports is to publish by himself.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raytuner-upload")  # has no thread before it is needed
        self._under_way: deque[Future[None]] = deque()
        self._failed = False

    def room(self) -> None:
        """Wait until one more may come. Raises what went wrong with one before."""
        self._wait(self.most - 1)

    def put(self, publish: Callable[[], None]) -> None:
        """Have one published, unless one before it failed."""
        self._under_way.append(self._thread.submit(self._publish, publish))

    def wait(self) -> None:
        """Wait until all are published. Raises what went wrong with the first that is not."""
        self._wait(0)

    def _publish(self, publish: Callable[[], None]) -> None:
        if not self._failed:
            self._failed = True
            publish()
            self._failed = False

    def _wait(self, most: int) -> None:
        try:
            while len(self._under_way) > most:
                self._under_way[0].result()
                self._under_way.popleft()
        except Exception:
            for each in self._under_way:  # none of them is published any more
                _ = each.cancel() or each.exception()
            self._under_way.clear()
            self._failed = False
            raise
