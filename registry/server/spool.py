"""Events on disk: what a process wrote down for one endpoint, and what it took over from one that died.

All replicas share a folder, in which lie

    <number>.<owner>.json    events, delivered in the order of the numbers
    <owner>.alive            who looks after this owner's files now: the id of a process
    now                      written to learn what time it is there

Each process writes files under an owner's name of its own, and as long as some wait it writes `alive` anew every
round. The files of an owner are

    held        `alive` is young: its holder delivers them, and nobody else
    orphaned    `alive` is older than a lease (the holder died), or is gone (it stopped and let go)
    claimed     somebody found them orphaned and wrote its own id into `alive`; of several the last one counts, so each
                reads it again some seconds later: the one that finds itself there holds them, the others go on

A holder that only slept finds another id in `alive` at its next round, forgets the files, and goes on under a new
name. No storage driver has a lock, so somebody who slept at the wrong moment may deliver what another one delivers
too: nothing is lost, and everything arrives at least once. Ages are differences between times of the store's own
clock; those of the replicas do not matter.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from typing import Any

import msgspec

from registry.store.driver import StorageDriver

ROUND_SECONDS = 20.0
LEASE_SECONDS = 90.0
SETTLE_SECONDS = 2.0
_NOW = "now"
_NAME = re.compile(r"(?:(\d{20})\.)?([0-9a-f]{32})\.(?:json|alive)")


class Spool:
    """The events that wait for one endpoint and are ours to deliver; `files` says how many each file holds."""

    def __init__(self, driver: StorageDriver, folder: str) -> None:
        self.files: dict[str, int] = {}
        self._driver = driver
        self._folder = folder
        self._me = uuid.uuid4().hex
        self._own = uuid.uuid4().hex
        self._held = {self._own}
        self._shown = -LEASE_SECONDS
        self._showing = asyncio.Lock()
        # The number of the newest file: the time, but never less than the one before, whatever happens to the clock.
        self._newest = 0

    @property
    def waiting(self) -> int:
        """How many events are written down and not delivered."""
        return sum(self.files.values())

    async def write(self, events: list[dict[str, Any]]) -> None:
        """Write events down, under a name that says that we live."""
        if time.monotonic() - self._shown > ROUND_SECONDS:
            await self.show_life()
        self._newest = max(self._newest + 1, time.time_ns())
        name = f"{self._newest:020d}.{self._own}.json"
        await self._driver.write(f"{self._folder}/{name}", msgspec.json.encode(events))
        self.files[name] = len(events)

    async def read(self, name: str) -> list[dict[str, Any]]:
        """The events of a file; none when it is gone or damaged."""
        try:
            return msgspec.json.decode(await self._driver.read(f"{self._folder}/{name}"), type=list[dict[str, Any]])
        except (FileNotFoundError, msgspec.MsgspecError):
            return []

    async def done(self, name: str) -> None:
        """Forget a file; what was taken over leaves no trace in the end."""
        await self._driver.remove(f"{self._folder}/{name}")
        self.files.pop(name, None)
        owner = name.split(".")[1]
        if owner in self._held - {self._own} and not self._files_of(owner):
            self._held.discard(owner)
            await self._driver.remove(self._alive(owner))

    async def show_life(self) -> None:
        """Renew our leases; what somebody else holds by now is forgotten."""
        async with self._showing:
            for owner in tuple(self._held):
                if await self._holder(owner) not in ("", self._me):
                    self._lose(owner)
            for owner in tuple(self._held):
                await self._driver.write(self._alive(owner), self._me.encode())
            self._shown = time.monotonic()

    async def take_over(self) -> bool:
        """Claim what nobody looks after; whether we hold more than before."""
        owners = {owner for _, owner in await self._present()} - self._held
        orphans = await self._orphans(owners) if owners else []
        for owner in orphans:
            await self._driver.write(self._alive(owner), self._me.encode())
        if orphans:
            await asyncio.sleep(SETTLE_SECONDS)
        taken = [owner for owner in orphans if await self._holder(owner) == self._me]
        for number, owner in await self._present() if taken else ():
            if number and owner in taken:
                self._held.add(owner)
                self._newest = max(self._newest, int(number))
                name = f"{number}.{owner}.json"
                self.files[name] = len(await self.read(name))
        for owner in set(taken) - self._held:
            await self._driver.remove(self._alive(owner))
        return not self._held.isdisjoint(taken)

    async def release(self) -> None:
        """Let others go on at once."""
        for owner in self._held:
            if await self._holder(owner) == self._me:
                await self._driver.remove(self._alive(owner))

    async def _present(self) -> list[tuple[str, str]]:
        """Number and owner of every file of events; a sign of life has no number."""
        found = map(_NAME.fullmatch, await self._driver.names(self._folder))
        return [(match[1] or "", match[2]) for match in found if match is not None]

    async def _orphans(self, owners: set[str]) -> list[str]:
        await self._driver.write(f"{self._folder}/{_NOW}", b"")
        now = await self._driver.stat(f"{self._folder}/{_NOW}")
        signs = await self._driver.stat_all([self._alive(owner) for owner in sorted(owners)])
        return [
            owner
            for owner, sign in zip(sorted(owners), signs, strict=True)
            if sign is None or (now is not None and now.modified - sign.modified > LEASE_SECONDS)
        ]

    def _lose(self, owner: str) -> None:
        for name in self._files_of(owner):
            del self.files[name]
        self._held.discard(owner)
        if owner == self._own:
            self._own = uuid.uuid4().hex
            self._held.add(self._own)

    def _files_of(self, owner: str) -> list[str]:
        return [name for name in self.files if name.split(".")[1] == owner]

    async def _holder(self, owner: str) -> str:
        try:
            return (await self._driver.read(self._alive(owner))).decode("ascii", "replace")
        except FileNotFoundError:
            return ""

    def _alive(self, owner: str) -> str:
        return f"{self._folder}/{owner}.alive"
