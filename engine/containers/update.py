"""docker update: other limits and another restart policy for a container, at once where it runs.

What a client leaves at zero stays as it is. The running container is changed first, by its runtime; the record follows,
so that a limit the kernel refused is never shown.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from engine.containers.assembly import Assembly
from engine.containers.host import HostFacts
from engine.containers.journalist import Journalist
from engine.containers.limits import Findings, check_limits
from engine.containers.model import Container, Status
from engine.containers.resources import DeviceNumber, linux_resources
from engine.containers.settings import HostConfig, Resources, RestartPolicy
from engine.containers.validation import check_restart_policy
from engine.errors import Conflict, EngineError, InvalidParameter
from engine.tasks import KeyedLocks, run_blocking

_UPDATABLE = (
    "blkio_weight",
    "cpu_shares",
    "nano_cpus",
    "cpu_period",
    "cpu_quota",
    "cpuset_cpus",
    "cpuset_mems",
    "memory",
    "memory_swap",
    "memory_reservation",
    "cpu_realtime_period",
    "cpu_realtime_runtime",
    "blkio_device_read_bps",
    "blkio_device_write_bps",
    "blkio_device_read_iops",
    "blkio_device_write_iops",
)


class UpdateConfig(Resources, frozen=True, kw_only=True, rename="pascal"):
    """The body of ``POST /containers/{id}/update``."""

    restart_policy: RestartPolicy = RestartPolicy()


class Updater:
    """Changes limits and restart policies."""

    def __init__(self, journalist: Journalist, assembly: Assembly, facts: HostFacts, locks: KeyedLocks) -> None:
        self._records = journalist
        self._assembly = assembly
        self._facts = facts
        self._locks = locks

    async def update(self, reference: str, change: UpdateConfig) -> list[str]:
        """Take over what ``change`` names; docker's warnings. Raises an ``EngineError``; then nothing has changed."""
        change, warnings = checked(change, self._facts)
        container = self._records.store.find(reference)
        async with self._locks(container.id):
            container = self._records.store.require(container.id)
            try:
                updated = await self._updated(container, change)
            except EngineError as error:
                raise type(error)(f"Cannot update container {container.id}: {error.message}") from error
            await self._records.save(updated, durable=True)
        self._records.event(updated, "update")
        return warnings

    async def _updated(self, container: Container, change: UpdateConfig) -> Container:
        if container.state.status in (Status.REMOVING, Status.DEAD):
            raise Conflict('container is marked for removal and cannot be "update"')
        host = merged(container.host_config, change)
        try:
            limits = await run_blocking(live_limits, change, _device_number_sync)
        except ValueError as error:
            raise InvalidParameter(str(error)) from error
        if container.is_running and limits:
            await self._assembly.limit(container, limits)
        return msgspec.structs.replace(container, host_config=host)


def checked(change: UpdateConfig, facts: HostFacts) -> tuple[UpdateConfig, list[str]]:
    """``change`` without what this host cannot do, and the warnings about that. Raises ``InvalidParameter``."""
    if change.pids_limit is not None and change.pids_limit < 0:
        change = msgspec.structs.replace(change, pids_limit=0)  # 0 and every negative number mean unlimited
    findings = Findings()
    try:
        check_limits(change, facts, findings, update=True)
        check_restart_policy(change.restart_policy)
    except ValueError as error:
        raise InvalidParameter(str(error)) from error
    unset = {f.name: f.default for f in msgspec.structs.fields(Resources) if f.name in findings.discarded}
    return msgspec.structs.replace(change, **unset), findings.warnings


def merged(host: HostConfig, change: UpdateConfig) -> HostConfig:
    """``host`` with what ``change`` names. Raises ``Conflict`` with dockerd's sentence."""
    _check_cpu(host, change)
    changes: dict[str, Any] = {name: value for name in _UPDATABLE if (value := getattr(change, name))}
    # dockerd compares numbers: also with -1, which means swap without a limit
    if change.memory and change.memory > host.memory_swap and change.memory_swap == 0:
        raise Conflict(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
        )
    if change.pids_limit is not None:
        changes["pids_limit"] = change.pids_limit
    policy = change.restart_policy
    if policy.name:
        if host.auto_remove and policy.name != "no":
            raise Conflict("Restart policy cannot be updated because AutoRemove is enabled for the container")
        changes["restart_policy"] = policy
    return msgspec.structs.replace(host, **changes)


def _check_cpu(host: HostConfig, change: UpdateConfig) -> None:
    """``--cpus`` is a period and a quota: neither form may be changed while the other is set."""
    for given, present, name, other in (
        (change.nano_cpus, host.cpu_period, "Nano CPUs", "CPU Period"),
        (change.nano_cpus, host.cpu_quota, "Nano CPUs", "CPU Quota"),
        (change.cpu_period, host.nano_cpus, "CPU Period", "NanoCPUs"),
        (change.cpu_quota, host.nano_cpus, "CPU Quota", "NanoCPUs"),
    ):
        if given > 0 and present > 0:
            raise Conflict(f"Conflicting options: {name} cannot be updated as {other} has already been set")


def live_limits(change: UpdateConfig, device_number: DeviceNumber) -> dict[str, Any]:
    """``linux.resources`` of what changes; real-time limits wait for the next start, as with dockerd."""
    live = (name for name in _UPDATABLE if not name.startswith("cpu_realtime"))
    wanted = Resources(**{name: getattr(change, name) for name in live}, pids_limit=change.pids_limit)
    limits = linux_resources(wanted, device_number)
    if change.memory_swap == -1:
        limits.setdefault("memory", {})["swap"] = -1
    if change.cpu_quota < 0:
        limits.setdefault("cpu", {})["quota"] = -1
    if change.pids_limit == 0:
        limits["pids"] = {"limit": -1}
    return limits


def _device_number_sync(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return os.major(status.st_rdev), os.minor(status.st_rdev)
