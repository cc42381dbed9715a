"""Notices blocking work on a running event loop.

Two nets: calls that are known to block (sleep, fsync, starting a program, removing a tree, name look-up …) raise when
project code makes them in a thread whose loop runs; and each turn of the loop is charged with the processor time it
took. Processor time, not wall time: a busy machine must not fail a test.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

_BLOCKING: tuple[tuple[ModuleType, str], ...] = (
    (time, "sleep"),
    (os, "fsync"),
    (os, "fdatasync"),
    (os, "sync"),
    (os, "waitpid"),
    (subprocess, "run"),
    (subprocess, "check_output"),
    (subprocess, "check_call"),
    (socket, "getaddrinfo"),
    (socket, "gethostbyname"),
    (sqlite3, "connect"),
    (shutil, "rmtree"),
    (shutil, "copytree"),
    (shutil, "copyfile"),
    (shutil, "move"),
)


class BlockingCall(AssertionError):
    """Project code made a blocking call while its thread's event loop was running."""


class LoopGuard:
    """Installed around one test; `complaints` says which turns of the loop were too long."""

    def __init__(self, project: Path, limit_seconds: float | None) -> None:
        self._sources = tuple(str(project / name) + os.sep for name in ("engine", "registry", "cli"))
        self._limit = limit_seconds
        self.complaints: list[str] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put both nets up until the test ends."""
        for module, name in _BLOCKING:
            monkeypatch.setattr(module, name, self._guarded(f"{module.__name__}.{name}", getattr(module, name)))
        if self._limit is not None:
            monkeypatch.setattr(asyncio.Handle, "_run", self._timed(asyncio.Handle._run))

    def _guarded(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if asyncio._get_running_loop() is not None and (where := self._caller()):
                raise BlockingCall(f"{name} on the event loop, called from {where}")
            return original(*args, **kwargs)

        return call

    def _caller(self) -> str:
        """The nearest project frame, or nothing when tests or asyncio itself made the call."""
        frame = sys._getframe(2)
        while frame is not None:
            path = frame.f_code.co_filename
            if path.startswith(self._sources):
                return f"{path}:{frame.f_lineno}"
            if f"{os.sep}asyncio{os.sep}" in path or f"{os.sep}tests{os.sep}" in path:
                return ""
            if frame.f_back is None:
                return ""
            frame = frame.f_back
        return ""

    def _timed(self, original: Callable[[asyncio.Handle], None]) -> Callable[[asyncio.Handle], None]:
        def run(handle: asyncio.Handle) -> None:
            begun = time.thread_time()
            original(handle)
            took = time.thread_time() - begun
            if self._limit is not None and took > self._limit and (what := self._project_callback(handle)):
                self.complaints.append(f"{what} took {took * 1000:.0f} ms of processor time in one turn")

        return run

    def _project_callback(self, handle: asyncio.Handle) -> str:
        callback = getattr(handle, "_callback", None)
        task = getattr(callback, "__self__", None)
        if isinstance(task, asyncio.Task):
            code = getattr(task.get_coro(), "cr_code", None)
            if code is not None and code.co_filename.startswith(self._sources):
                return f"{task.get_name()} ({code.co_qualname})"
            return ""
        code = getattr(callback, "__code__", None)
        return code.co_qualname if code is not None and code.co_filename.startswith(self._sources) else ""
