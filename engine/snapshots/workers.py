"""The pool of workers, seen from the daemon: one job is one forked child of the foundry process.

Promises: at most as many CPU jobs at a time as there are processors, whatever is asked (prompt jobs, which are short or
whose pace a client sets, have a lane of their own and wait for no unpacking, and deletion has one for which nobody
waits); a cancelled job's worker is killed at
once; a worker that dies is an error that says so, never a hang; the foundry ends after some idle seconds, so that a
quiet daemon holds no memory for it; nothing survives the daemon.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.kernel import process
from engine.tasks import run_blocking

log = logging.getLogger(__name__)

IDLE_SECONDS = 10.0
PROMPT_JOBS = 64
_MESSAGE_LIMIT = 256 * 1024


class WorkerDied(OSError):
    """A worker ended without a word: killed by the kernel for want of memory, or by an administrator."""


def rebuild(error: Mapping[str, Any]) -> Exception:
    """The built-in exception that a worker described."""
    if error["kind"] == "OSError":
        return OSError(error["errno"], error["message"], error.get("name"))
    if error["kind"] == "ValueError":
        return ValueError(error["message"])
    return RuntimeError(f"{error['kind']}: {error['message']}")


class Job:
    """One running job: wait for ``result``; ``kill`` ends it early."""

    def __init__(self, number: int, sock: socket.socket, kill: Callable[[int], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._number = number
        self._sock = sock
        self._kill = kill
        self._progress: Callable[[int], None] | None = None
        self.parts: list[Any] = []
        self._first: asyncio.Future[Any] = self._loop.create_future()
        self.outcome: asyncio.Future[Any] = self._loop.create_future()
        self.ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(sock.fileno(), self._readable)

    def on_progress(self, callback: Callable[[int], None]) -> None:
        self._progress = callback

    def _readable(self) -> bool:
        """Take one message; whether there may be more."""
        try:
            data = self._sock.recv(_MESSAGE_LIMIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._close()
            return False
        message = json.loads(data)
        if "progress" in message:
            if self._progress is not None:
                self._progress(message["progress"])
        elif "part" in message:
            self.parts.append(message["part"])
            if not self._first.done():
                self._first.set_result(message["part"])
        elif not self.outcome.done():
            if "error" in message:
                self.outcome.set_exception(rebuild(message["error"]))
            else:
                self.outcome.set_result(message["result"])
            self._close()
            return False
        return True

    def _close(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    def told_ended(self, status: int) -> None:
        """The child was reaped. What it said before lies in the socket still, so that is read first."""
        while self._sock.fileno() >= 0 and self._readable():
            pass
        self._close()
        if not self.ended.done():
            self.ended.set_result(status)
        if not self.outcome.done():
            code = os.waitstatus_to_exitcode(status)
            how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
            self.outcome.set_exception(WorkerDied(f"a worker process {how}"))

    async def first_part(self) -> Any:
        """The first piece of a long result as soon as it is there, or the exception the job raised before."""
        await asyncio.wait([self._first, self.outcome], return_when=asyncio.FIRST_COMPLETED)
        return self._first.result() if self._first.done() else await self.result()

    async def result(self) -> Any:
        """The job's result, or the exception it raised; cancelling this kills the worker."""
        try:
            return await asyncio.shield(self.outcome)
        except asyncio.CancelledError:
            self.kill()
            raise

    def kill(self) -> None:
        """End the worker now; a job that is over does not mind."""
        if not self.ended.done():
            self._kill(self._number)
        if not self.outcome.done():
            self.outcome.set_exception(WorkerDied("the job was cancelled"))
        self.outcome.exception()  # marks it as seen: a killed job's outcome interests nobody
        self._close()


class _Foundry:
    """The daemon's hold on one foundry process."""

    def __init__(self, process_: subprocess.Popen[bytes], control: socket.socket) -> None:
        self.process = process_
        self.control = control
        self.jobs: dict[int, Job] = {}


class Workers:
    """Runs named jobs (``jobs.TABLE``) in confined child processes."""

    def __init__(self, cpu_jobs: int | None = None, idle_seconds: float = IDLE_SECONDS) -> None:
        self._lanes = {
            "cpu": asyncio.Semaphore(cpu_jobs or os.cpu_count() or 2),
            "prompt": asyncio.Semaphore(PROMPT_JOBS),
            "trash": asyncio.Semaphore(1),
        }
        self._idle_seconds = idle_seconds
        self._foundry: _Foundry | None = None
        self._starting = asyncio.Lock()
        self._number = 0
        self._idle: asyncio.TimerHandle | None = None
        self._closed = False
        self._reaper: asyncio.Future[int] | None = None

    async def run(
        self,
        job: str,
        args: Mapping[str, Any],
        *,
        fds: Sequence[int] = (),
        progress: Callable[[int], None] | None = None,
        lane: str = "cpu",
    ) -> Any:
        """Run one job to its end; parts it sent are joined into the result when that is None."""
        async with self.job(job, args, fds=fds, lane=lane) as running:
            if progress is not None:
                running.on_progress(progress)
            result = await running.result()
            return running.parts if result is None and running.parts else result

    @contextlib.asynccontextmanager
    async def job(
        self, job: str, args: Mapping[str, Any], *, fds: Sequence[int] = (), lane: str = "cpu"
    ) -> AsyncIterator[Job]:
        """A running job; leaving the context kills it if it still runs, and waits until its process is gone."""
        async with self._lanes[lane]:
            running = await self._start(job, args, fds)
            try:
                yield running
            finally:
                if not running.outcome.done():
                    running.kill()
                await asyncio.shield(running.ended)

    async def _start(self, job: str, args: Mapping[str, Any], fds: Sequence[int]) -> Job:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours.setblocking(False)
            request = json.dumps({"job": job, "args": args}).encode()
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            ours.sendmsg([request], rights)
            foundry = await self._ready_foundry()
            self._number += 1
            number = self._number
            socket.send_fds(foundry.control, [json.dumps({"fork": number}).encode()], [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        running = Job(number, ours, lambda n: self._send_kill(foundry, n))
        foundry.jobs[number] = running
        return running

    @staticmethod
    def _send_kill(foundry: _Foundry, number: int) -> None:
        with contextlib.suppress(OSError):
            foundry.control.send(json.dumps({"kill": number}).encode())

    async def _ready_foundry(self) -> _Foundry:
        async with self._starting:
            if self._closed:
                raise RuntimeError("the worker pool is closed")
            if self._idle is not None:
                self._idle.cancel()
                self._idle = None
            if self._foundry is None:
                self._foundry = await run_blocking(_start_sync)
                fd = self._foundry.control.fileno()
                asyncio.get_running_loop().add_reader(fd, self._control_readable, self._foundry)
            return self._foundry

    def _control_readable(self, foundry: _Foundry) -> None:
        try:
            data = foundry.control.recv(_MESSAGE_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose(foundry)
            return
        message = json.loads(data)
        job = foundry.jobs.pop(message["ended"], None)
        if job is not None:
            job.told_ended(message["status"])
        if not foundry.jobs and self._idle is None and not self._closed:
            self._idle = asyncio.get_running_loop().call_later(self._idle_seconds, self._retire, foundry)

    def _retire(self, foundry: _Foundry) -> None:
        self._idle = None
        if foundry is self._foundry and not foundry.jobs:
            self._lose(foundry)

    def _lose(self, foundry: _Foundry) -> None:
        """Let go of a foundry: it is idle, or it died, in which case its jobs end in error."""
        if foundry is self._foundry:
            self._foundry = None
        asyncio.get_running_loop().remove_reader(foundry.control.fileno())
        foundry.control.close()
        while foundry.jobs:
            foundry.jobs.popitem()[1].told_ended(9)
        self._reaper = asyncio.get_running_loop().run_in_executor(None, foundry.process.wait)

    async def aclose(self) -> None:
        """Kill every job and end the foundry."""
        self._closed = True
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        async with self._starting:
            if self._foundry is not None:
                self._lose(self._foundry)
        if self._reaper is not None:
            await self._reaper


def _start_sync() -> _Foundry:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        child = process.start_interpreter_sync(
            "engine.snapshots.foundry", [str(theirs.fileno())], folders=import_folders(), pass_fds=[theirs.fileno()]
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    ours.setblocking(False)
    return _Foundry(child, ours)


def import_folders() -> list[str]:
    """Where a foundry finds this package and the decompressors: an isolated interpreter knows no site-packages."""
    folders = [str(Path(__file__).resolve().parents[2])]
    for name in ("isal", "zstandard"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            folder = str(Path(spec.origin).parents[1])
            if folder not in folders:
                folders.append(folder)
    return folders
