"""Group commit: small files of requests that come together, and the large ones that they finish, are made durable
together.

A sync costs the same for one file as for many, and one thread that does all of it leaves the interpreter to the loop.
While one batch is placed (`placing.py`) the next gathers; a request that fails does so alone. Nobody is told of success
before it would survive a crash. Where the file system has one journal, syncing the files of the next batch commits the
names of the one before: a batch is answered then, and only the last one of a row has its folder synced.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass

from registry.store.driver import Files, Spent
from registry.store.placing import Moves, Outcome, place_sync, sync_folder_sync
from registry.tasks import begin, run_blocking

_MAX_TOGETHER = 16
# While one waits for the disk another fills; how many did not matter much (1 to 3) on disks that were quick.
_LANES = 3


@dataclass(frozen=True, slots=True)
class Request:
    """What one caller wants: finished files to be renamed, small ones to be written, folders to be removed, in this
    order."""

    moves: Moves
    files: Files
    unless_same: bool
    spent: Spent


class GroupCommit:
    """Writes files atomically and durably, for as many callers as wait."""

    def __init__(self, lanes: int = _LANES) -> None:
        self._waiting: list[tuple[Request, asyncio.Future[None]]] = []
        self._free = lanes
        self._working: set[asyncio.Future[None]] = set()

    async def write(self, files: Files, unless_same: bool = False, moves: Moves = (), spent: Spent = ()) -> None:
        """Rename what `moves` says, then put `data` at each path, in order, then remove what is `spent`; all paths are
        absolute.

        `unless_same` leaves files alone that hold it already. A caller that is cancelled waits nevertheless until it is
        known what became of it: what appears later would be nobody's.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((Request(moves, files, unless_same, spent), done))
        if self._free:
            self._free -= 1
            lane = begin(self._work())
            self._working.add(lane)
            lane.add_done_callback(self._working.discard)
        try:
            await asyncio.shield(done)
        except asyncio.CancelledError:
            if not done.done():
                await asyncio.wait([done])
            if not done.cancelled():
                done.exception()  # nobody asks for it any more
            raise

    async def _work(self) -> None:
        renamed: list[asyncio.Future[None]] = []
        unsettled: dict[int, str] = {}
        try:
            while self._waiting or renamed:
                batch, self._waiting = self._waiting[:_MAX_TOGETHER], self._waiting[_MAX_TOGETHER:]
                written = await run_blocking(_write_requests_sync, [request for request, _ in batch], unsettled)
                for done in renamed:
                    _tell(done, written.before)
                renamed, unsettled = [], written.unsettled
                for (_, done), error in zip(batch, written.errors, strict=True):
                    if error is not None or not unsettled:
                        _tell(done, error)
                    else:
                        renamed.append(done)
        finally:
            # At once, not when the task's end is told: a request that comes in between would wait for nobody.
            self._free += 1


def _tell(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


@dataclass(slots=True)
class _Written:
    """How a batch went: what failed of it, whether the batch before it is safe now, and what is not safe yet."""

    errors: list[Exception | None]
    before: Exception | None
    unsettled: dict[int, str]


def _write_requests_sync(requests: Sequence[Request], unsettled: dict[int, str]) -> _Written:
    """All requests as one batch; should that fail, one by one, so that only the guilty one is told. What the batch
    before left `unsettled` is safe afterwards."""
    outcome = Outcome()
    errors: list[Exception | None] = [None] * len(requests)
    try:
        _place_sync(requests, outcome)
    except Exception as error:  # noqa: BLE001 - whoever asked for it is told, whatever it is
        if len(requests) == 1:
            errors = [error]
        else:
            for number, request in enumerate(requests):
                try:
                    _place_sync([request], outcome)
                except Exception as own:  # noqa: BLE001 - as above
                    errors[number] = own
    try:
        for device, folder in unsettled.items():
            if device not in outcome.settled:
                sync_folder_sync(folder)
    except OSError as error:
        return _Written(errors, error, outcome.unsettled)
    return _Written(errors, None, outcome.unsettled)


def _place_sync(requests: Sequence[Request], outcome: Outcome) -> None:
    files: list[tuple[str, bytes]] = []
    moves: list[tuple[str, str]] = []
    present: list[str] = []
    for request in requests:
        for source, target in request.moves:
            if source in outcome.moved:
                present.append(target)  # a batch that failed had come as far as this
            else:
                moves.append((source, target))
        for target, data in request.files:
            if request.unless_same and _holds(target, data):
                present.append(target)
            else:
                files.append((target, data))
    place_sync(files, present, moves, outcome, [folder for request in requests for folder in request.spent])


def _holds(path: str, data: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.read(descriptor, len(data) + 1) == data
    finally:
        os.close(descriptor)
