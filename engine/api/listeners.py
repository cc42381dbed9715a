"""Where clients connect: unix socket (0660, group docker), TCP with optional TLS, sockets handed over by systemd.

A stale socket file is replaced only when nobody answers on it, so that two daemons never share one path unnoticed.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import socket
import ssl
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from engine.api.app import Api, EngineRequest
from engine.api.streams import TakeoverHandler
from engine.config import tcp_address

log = logging.getLogger(__name__)

READ_BUFFER = 256 * 1024
FIRST_SYSTEMD_FD = 3


class EngineServer(web.Server):
    """aiohttp's low-level server with our connection handler."""

    def __init__(self, api: Api) -> None:
        self._tasks_loop = asyncio.get_running_loop()
        super().__init__(
            api,
            request_factory=self._engine_request,
            handler_cancellation=True,
            read_bufsize=READ_BUFFER,
            auto_decompress=False,
            access_log=None,
            keepalive_timeout=75.0,
        )

    def _engine_request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return EngineRequest(message, payload, protocol, writer, task, self._tasks_loop, client_max_size=1 << 40)

    def __call__(self) -> RequestHandler:
        """One handler a connection."""
        return TakeoverHandler(self, loop=self._tasks_loop, **self._kwargs)


class Listeners:
    """Every socket the API is served on."""

    def __init__(self, api: Api, group: str) -> None:
        self._api = api
        self._group = group
        self._server: EngineServer | None = None
        self._listening: list[asyncio.Server] = []
        self._socket_files: list[tuple[Path, int]] = []

    async def open(self, hosts: Sequence[str], tls: ssl.SSLContext | None) -> None:
        """Listen on each of ``hosts`` (``unix://``, ``tcp://``, ``fd://``). Raises ``OSError`` or ``ValueError``
        with the address in it."""
        self._server = EngineServer(self._api)
        for host in dict.fromkeys(hosts):
            scheme, _, address = host.partition("://")
            if scheme == "unix":
                await self._open_unix(Path(address))
            elif scheme == "tcp":
                await self._open_tcp(address, tls)
            elif scheme == "fd":
                await self._open_inherited()
            else:
                raise ValueError(f"cannot listen on {host}: only unix://, tcp:// and fd:// are known")
            log.info("API listens on %s", host)

    async def _open_unix(self, path: Path) -> None:
        assert self._server is not None
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale_socket(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        previous = os.umask(0o117)
        try:
            listener.bind(str(path))
        finally:
            os.umask(previous)
        with contextlib.suppress(KeyError):
            os.chown(path, 0, int(self._group) if self._group.isdigit() else grp.getgrnam(self._group).gr_gid)
        os.chmod(path, 0o660)
        self._socket_files.append((path, path.stat().st_ino))
        loop = asyncio.get_running_loop()
        self._listening.append(await loop.create_unix_server(self._server, sock=listener, backlog=1024))

    async def _open_tcp(self, address: str, tls: ssl.SSLContext | None) -> None:
        assert self._server is not None
        host, port = tcp_address(address, tls=tls is not None)
        if tls is None and not _is_loopback(host):
            log.warning("tcp://%s is open without TLS: whoever reaches it is root on this machine", address)
        loop = asyncio.get_running_loop()
        self._listening.append(await loop.create_server(self._server, host, port, ssl=tls, backlog=1024))

    async def _open_inherited(self) -> None:
        assert self._server is not None
        if os.environ.get("LISTEN_PID") != str(os.getpid()):
            raise ValueError("no sockets found via socket activation: make sure the service was started by systemd")
        loop = asyncio.get_running_loop()
        for number in range(FIRST_SYSTEMD_FD, FIRST_SYSTEMD_FD + int(os.environ.get("LISTEN_FDS", "0"))):
            inherited = socket.socket(fileno=number)
            inherited.setblocking(False)
            if inherited.family == socket.AF_UNIX:
                self._listening.append(await loop.create_unix_server(self._server, sock=inherited))
            else:
                self._listening.append(await loop.create_server(self._server, sock=inherited))

    async def close(self, grace_seconds: float) -> None:
        """Stop accepting, give running requests ``grace_seconds``, then cut them off; remove our socket files."""
        for listening in self._listening:
            listening.close()
        for path, inode in self._socket_files:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == inode:
                    path.unlink()
        if self._server is not None:
            self._server.pre_shutdown()
            await self._server.shutdown(grace_seconds)


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _remove_stale_socket(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise FileExistsError(f"{path} is there and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise FileExistsError(f"another daemon listens on {path}")
