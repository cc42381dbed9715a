"""dockerd's metrics for Prometheus, under its names, at the address of ``metrics-addr``; gathered when asked for.

What dockerd counts and this engine does not have (builds, swarm, its own logging) is left out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from engine.config import metrics_address
from engine.errors import os_words
from engine.events import EventBus
from engine.measures import Measures
from registry.exposition import CONTENT_TYPE, Exposition, labels

log = logging.getLogger(__name__)

_INFO = {
    "architecture": "Architecture",
    "commit": "Commit",
    "daemon_id": "ID",
    "graphdriver": "Driver",
    "kernel": "KernelVersion",
    "os": "OperatingSystem",
    "os_type": "OSType",
    "os_version": "OSVersion",
    "version": "ServerVersion",
}
_STATES = {"paused": "ContainersPaused", "running": "ContainersRunning", "stopped": "ContainersStopped"}


class MetricsListener:
    """The address that Prometheus scrapes."""

    def __init__(self, measures: Measures, events: EventBus, about: Callable[[], Mapping[str, Any]]) -> None:
        """``about`` gives the fields of ``docker info``."""
        self._measures = measures
        self._events = events
        self._about = about
        self._listening: asyncio.Server | None = None
        self._server: web.Server | None = None

    async def open(self, address: str) -> None:
        """Listen. Raises ``OSError`` or ``ValueError``, in dockerd's words."""
        host, port = metrics_address(address)
        self._server = web.Server(self._answer, access_log=None)
        try:
            self._listening = await asyncio.get_running_loop().create_server(self._server, host or None, port)
        except OSError as error:
            words = os_words(OSError(error.errno, None)) if error.errno else str(error)
            raise OSError(f"failed to start metrics server: listen tcp {address}: bind: {words}") from error
        log.info("metrics API listening on %s", address)

    async def close(self) -> None:
        """Answer nobody any more."""
        if self._listening is not None:
            self._listening.close()
        if self._server is not None:
            await self._server.shutdown(0)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/metrics":
            return web.Response(status=404, text="404 page not found\n")
        return web.Response(body=self.text(), headers={"Content-Type": f"{CONTENT_TYPE}; charset=utf-8"})

    def text(self) -> bytes:
        """All metrics as they are now."""
        shown, about, measures = Exposition(), self._about(), self._measures

        def one(name: str, kind: str, value: float, words: str, tags: str = "") -> None:
            shown.family(f"engine_daemon_{name}", kind, [(tags, value)], words)

        shown.histograms(
            "engine_daemon_container_actions_seconds",
            "action",
            measures.container_actions,
            "The number of seconds it takes to process each container action",
        )
        shown.family(
            "engine_daemon_container_states_containers",
            "gauge",
            [(labels(state=state), about[key]) for state, key in _STATES.items()],
            "The count of containers in various states",
        )
        one("engine_cpus_cpus", "gauge", about["NCPU"], "The number of cpus that the host system of the engine has")
        info = labels(**{name: about.get(key, "") for name, key in _INFO.items()})
        one("engine_info", "gauge", 1, "The information related to the engine and the OS it is running on", info)
        words = "The number of bytes of memory that the host system of the engine has"
        one("engine_memory_bytes", "gauge", about["MemTotal"], words)
        words = "The number of current subscribers to events"
        one("events_subscribers_total", "gauge", self._events.listeners, words)
        one("events_total", "counter", self._events.published, "The number of events logged")
        one("health_checks_failed_total", "counter", measures.failed_probes, "The total number of failed health checks")
        one("health_checks_total", "counter", measures.probes, "The total number of health checks")
        shown.histograms(
            "engine_daemon_network_actions_seconds",
            "action",
            measures.network_actions,
            "The number of seconds it takes to process each network action",
        )
        return shown.text()
