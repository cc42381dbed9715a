"""What is done about a container that has turned unhealthy: nothing, unless its label or the daemon's setting says so.

A restart waits for a back-off that starts over once the container was healthy, so that a probe that can never succeed
does not start it again and again. Whoever became healthy, ended or left meanwhile is let alone.
"""

from __future__ import annotations

import asyncio
import logging

from engine.containers.health import HEALTHY, UNHEALTHY
from engine.containers.journalist import Journalist
from engine.containers.lifecycle import Lifecycle
from engine.containers.live import LiveTable
from engine.containers.model import Container
from engine.containers.policy import STABLE_AFTER_NS, UnhealthyAction, unhealthy_action
from engine.errors import EngineError, NotFound, NotModified
from engine.tasks import Nursery

log = logging.getLogger(__name__)


class Caretaker:
    """Acts for all containers."""

    def __init__(
        self, journalist: Journalist, live: LiveTable, lifecycle: Lifecycle, nursery: Nursery, default: str
    ) -> None:
        """`default` is daemon.json's `on-unhealthy`."""
        self._records = journalist
        self._live = live
        self._lifecycle = lifecycle
        self._nursery = nursery
        self._default = default

    def turned_unhealthy(self, container: Container) -> None:
        """Begin what is to be done, in the background."""
        action = unhealthy_action(container.labels, self._default)
        if action is UnhealthyAction.NONE:
            return
        live = self._live[container.id]
        health = container.state.health
        was_healthy = health is not None and any(probe.exit_code == 0 for probe in health.log)
        delay = 0.0
        if action is UnhealthyAction.RESTART:
            delay = live.unhealthy_back_off.next_delay(STABLE_AFTER_NS if was_healthy else 0)
        self._nursery.start(self._act(container, action, delay), name=f"unhealthy {container.id[:12]}")

    async def _act(self, container: Container, action: UnhealthyAction, delay: float) -> None:
        await asyncio.sleep(delay)
        now = self._records.store.get(container.id)
        if now is None or not now.is_running or now.state.started_at != container.state.started_at:
            return
        if now.state.health is None or now.state.health.status == HEALTHY:
            return
        log.info("container %s is %s: %s", container.id, UNHEALTHY, action.value)
        try:
            match action:
                case UnhealthyAction.RESTART:
                    await self._lifecycle.restart(container.id)
                case UnhealthyAction.STOP:
                    await self._lifecycle.stop(container.id)
                case UnhealthyAction.KILL:
                    await self._lifecycle.end_for_policy(container.id)
        except (NotFound, NotModified):
            return
        except EngineError as error:
            log.warning("container %s is unhealthy; %s failed: %s", container.id, action.value, error.message)
