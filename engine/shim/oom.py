"""Whether the kernel killed for want of memory in a container's cgroup, and notice when it does.

The counter file is `memory.oom_control` on cgroup v1 (Linux 4.13) and `memory.events` on v2; both have a line `oom_kill
N`.
"""

import contextlib
import os
from collections.abc import Callable

from engine.shim import invoke
from engine.shim.loop import READ, URGENT, Loop


def kills(path: str) -> int:
    """How many processes the out-of-memory killer has taken; 0 where that cannot be read."""
    if not path:
        return 0
    with contextlib.suppress(OSError, ValueError):
        for line in invoke.read_whole(path).splitlines():
            key, _, value = line.partition(b" ")
            if key == b"oom_kill":
                return int(value)
    return 0


class Watch:
    """Calls back after the counter has grown: an eventfd on v1, kernfs's poll on v2.

    `noticed` outlives the group: systemd removes a scope as soon as its last process has ended.
    """

    def __init__(self, loop: Loop, path: str, call: Callable[[], None]) -> None:
        self._loop = loop
        self._path = path
        self._call = call
        self.noticed = 0
        self._descriptors: list[int] = []
        with contextlib.suppress(OSError):
            self._begin()

    def close(self) -> None:
        for descriptor in self._descriptors:
            self._loop.forget(descriptor)
            os.close(descriptor)
        self._descriptors = []

    def _begin(self) -> None:
        counter = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        self._descriptors.append(counter)
        if os.path.basename(self._path) == "memory.events":
            self._loop.watch(counter, URGENT, self._changed)
            return
        event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._descriptors.append(event)
        control = os.open(f"{os.path.dirname(self._path)}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(control, b"%d %d" % (event, counter))
        finally:
            os.close(control)
        self._loop.watch(event, READ, self._signalled)

    def _signalled(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._descriptors[1])
        # v1 signals when memory runs out, a moment before the kill is counted
        self._call()

    def _changed(self, _events: int) -> None:
        with contextlib.suppress(OSError):  # the group is gone
            os.pread(self._descriptors[0], 4096, 0)
        count = kills(self._path)
        if count > self.noticed:
            self.noticed = count
            self._call()
