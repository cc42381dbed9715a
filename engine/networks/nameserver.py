"""The daemon's end of the name server process: start it, find it again, tell it who is on which network.

It is started with the first container on a user-defined network and outlives the daemon. If it dies, it is started
again and everything is told anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.util
import json
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import engine
from engine.kernel import nft
from engine.kernel.process import start_interpreter_sync
from engine.kernel.sockets import resolver_sockets_sync
from engine.networks.namefiles import EMBEDDED_SERVER
from engine.tasks import Nursery, run_in

log = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0


class _Process(Protocol):
    """The child as far as it is looked at here."""

    returncode: int | None

    def poll(self) -> int | None: ...


class NameServer:
    """One conversation with the process, message by message. ``on_lost`` is called when it died while in use."""

    def __init__(self, run_folder: Path, *, open_nft: Callable[[], nft.Nft] = nft.open_nft) -> None:
        self._path = run_folder / "dns.sock"
        self._open_nft = open_nft
        self._nft: nft.Nft | None = None
        self._socket: socket.socket | None = None
        self._process: _Process | None = None
        self._pidfd = -1
        self._lock = asyncio.Lock()
        self._nursery = Nursery("nameserver")
        self.on_lost: Callable[[], Awaitable[None]] | None = None

    async def find(self, known: Collection[str]) -> set[str]:
        """After a start of the daemon: of the containers ``known``, those the process still serves. Others it drops.

        Does not start it.
        """
        async with self._lock:
            if self._socket is None and not await run_in("net", self._connect_sync):
                return set()
            self._notice_end()
            answer = await self._ask({"do": "keep", "ids": sorted(known)})
            return set(answer["have"])

    async def open_sockets(self, netns: int, *, is_fresh: bool) -> tuple[socket.socket, socket.socket]:
        """The resolver's sockets inside a namespace. Raises ``OSError``."""
        if self._nft is None:
            self._nft = await run_in("net", self._open_nft)
        return await run_in("net", resolver_sockets_sync, self._nft, netns, EMBEDDED_SERVER, is_fresh=is_fresh)

    async def put(self, member: Mapping[str, Any], sockets: Collection[socket.socket] = ()) -> None:
        """Add or change a container; its sockets go along the first time and are closed here. Raises ``OSError``."""
        try:
            await self._tell({"do": "put", **member}, [one.fileno() for one in sockets])
        finally:
            for one in sockets:
                one.close()

    async def watch(self, container_id: str, init_pid: int) -> None:
        """The container's init runs: the process must let go of the namespace when it ends. Raises ``OSError``."""
        try:
            pidfd = os.pidfd_open(init_pid)
        except ProcessLookupError:
            await self.drop(container_id)
            return
        try:
            await self._tell({"do": "watch", "id": container_id}, [pidfd])
        finally:
            os.close(pidfd)

    async def drop(self, container_id: str) -> None:
        """Forget a container and close its sockets. Nobody to tell is fine."""
        async with self._lock:
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    await self._ask({"do": "drop", "id": container_id})

    async def _tell(self, message: dict[str, Any], fds: list[int]) -> None:
        async with self._lock:
            if self._socket is None:
                await run_in("net", self._start_sync)
                self._notice_end()
            await self._ask(message, fds)

    async def _ask(self, message: dict[str, Any], fds: list[int] | None = None) -> dict[str, Any]:
        return await run_in("net", self._ask_sync, json.dumps(message).encode(), fds or [])

    def _ask_sync(self, message: bytes, fds: list[int]) -> dict[str, Any]:
        assert self._socket is not None
        socket.send_fds(self._socket, [message], fds)
        data = self._socket.recv(1 << 20)
        if not data:
            raise ConnectionResetError("the name server has ended")
        answer: dict[str, Any] = json.loads(data)
        if "error" in answer:
            raise OSError(f"name server: {answer['error']}")
        return answer

    def _connect_sync(self) -> bool:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        connection.settimeout(ANSWER_SECONDS)
        try:
            connection.connect(os.fspath(self._path))
            # Its pid by asking: the socket's credentials are those of whoever made the listener, which was a daemon.
            connection.send(b'{"do": "hello"}')
            self._pidfd = os.pidfd_open(json.loads(connection.recv(1 << 20))["pid"])
        except (OSError, ValueError):
            connection.close()
            return False
        self._socket = connection
        return True

    def _start_sync(self) -> None:
        if self._connect_sync():
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(os.fspath(self._path))
            self._path.chmod(0o600)
            listener.listen(4)
            arguments = [str(listener.fileno()), str(self._path)]
            self._process = start_interpreter_sync(
                "engine.dns.__main__", arguments, folders=_import_folders(), pass_fds=[listener.fileno()]
            )
        if not self._connect_sync():
            raise OSError("the name server does not answer")

    def _notice_end(self) -> None:
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_end)

    def _on_end(self) -> None:
        self._forget()
        if self.on_lost is not None:
            self._nursery.start(self._recover(), name="recover")

    async def _recover(self) -> None:
        assert self.on_lost is not None
        await self.on_lost()

    def _forget(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None and self._process.poll() is not None:
            self._process = None

    async def aclose(self) -> None:
        """Hang up. The process goes on as long as it serves a container."""
        await self._nursery.aclose()
        process = self._process
        self._forget()
        if process is not None:
            await run_in("net", _reap_sync, process)
        if not await run_in("net", self._is_alive_sync):
            self._path.unlink(missing_ok=True)

    def _is_alive_sync(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            with contextlib.suppress(OSError):
                probe.connect(os.fspath(self._path))
                return True
        return False


def _import_folders() -> list[str]:
    """Where the process finds the engine and dnspython, which this one has no need to import."""
    library = importlib.util.find_spec("dns")
    if library is None or library.origin is None:
        raise FileNotFoundError(errno.ENOENT, "dnspython is not installed")
    return list(dict.fromkeys(str(Path(file).parent.parent) for file in (engine.__file__, library.origin)))


def _reap_sync(process: _Process) -> None:
    """Without containers the process ends now and is reaped; with containers it goes on, somebody else's child soon."""
    deadline = time.monotonic() + 0.5
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.returncode = process.returncode or 0  # it is meant to go on: no complaint that nobody waited
