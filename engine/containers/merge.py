"""A container's settings laid over its image's, and what follows from them: the command line and the environment.

Pure. The rules are dockerd's ``merge``: what the user said wins, maps unite, an empty entry point resets the image's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from engine.containers.loose import convert_loose
from engine.containers.settings import ContainerConfig, HealthConfig

T = TypeVar("T")

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def image_settings(config: Mapping[str, Any]) -> ContainerConfig:
    """The ``config`` object of an image (docker or OCI) as settings. Raises ``ValueError`` for a wrong type."""
    return convert_loose(ContainerConfig, dict(config))


def merge_image(config: ContainerConfig, image: ContainerConfig) -> ContainerConfig:
    """``config`` with the gaps filled from ``image``. Raises ``ValueError`` when no command results."""
    entrypoint, cmd, escaped = config.entrypoint, config.cmd, config.args_escaped
    if not entrypoint:
        if not cmd:
            cmd, escaped = image.cmd, image.args_escaped
        if entrypoint is None:
            entrypoint = image.entrypoint
    if entrypoint == ("",):
        entrypoint = None
    if not entrypoint and not cmd:
        raise ValueError("no command specified")
    return msgspec.structs.replace(
        config,
        user=config.user or image.user,
        exposed_ports=_union(config.exposed_ports, image.exposed_ports),
        env=_merge_env(config.env, image.env),
        labels={**(image.labels or {}), **(config.labels or {})},
        entrypoint=entrypoint,
        cmd=cmd,
        args_escaped=escaped,
        healthcheck=_merge_health(config.healthcheck, image.healthcheck),
        working_dir=config.working_dir or image.working_dir,
        volumes=_union(config.volumes, image.volumes),
        stop_signal=config.stop_signal or image.stop_signal,
        shell=config.shell or image.shell,
    )


def command_line(config: ContainerConfig) -> tuple[str, ...]:
    """The words the container's first process is started with: entry point, then command."""
    return (*(config.entrypoint or ()), *(config.cmd or ()))


def environment(config: ContainerConfig, hostname: str, link_env: Sequence[str] = ()) -> tuple[str, ...]:
    """The process environment: PATH, HOSTNAME, TERM for a terminal, links, then the settings, which win.

    A setting without ``=`` removes the variable.
    """
    defaults = [f"PATH={DEFAULT_PATH}", f"HOSTNAME={hostname}"]
    if config.tty:
        defaults.append("TERM=xterm")
    return replace_env([*defaults, *link_env], config.env or ())


def with_home(env: Sequence[str], home: str) -> tuple[str, ...]:
    """``env`` with a HOME where it has none, or an empty one. runc sees to that by itself, crun not."""
    kept = tuple(item for item in env if item != "HOME=")
    return kept if any(_key(item) == "HOME" for item in kept) else (*kept, f"HOME={home}")


def replace_env(defaults: Iterable[str], overrides: Iterable[str]) -> tuple[str, ...]:
    """``defaults`` with variables of ``overrides`` replaced in place, removed (no ``=``), or appended."""
    merged: dict[str, str] = {_key(item): item for item in defaults}
    for item in overrides:
        if "=" in item:
            merged[_key(item)] = item
        else:
            merged.pop(item, None)
    return tuple(merged.values())


def _key(item: str) -> str:
    return item.partition("=")[0]


def _union(mine: dict[str, T] | None, theirs: dict[str, T] | None) -> dict[str, T] | None:
    if not mine:
        return theirs
    return {**(theirs or {}), **mine}


def _merge_env(mine: Sequence[str] | None, theirs: Sequence[str] | None) -> tuple[str, ...] | None:
    if not mine:
        return tuple(theirs) if theirs is not None else None if mine is None else ()
    known = {_key(item) for item in mine}
    return (*mine, *(item for item in theirs or () if _key(item) not in known))


def _merge_health(mine: HealthConfig | None, theirs: HealthConfig | None) -> HealthConfig | None:
    if mine is None or theirs is None:
        return mine or theirs
    return HealthConfig(
        test=mine.test or theirs.test,
        interval=mine.interval or theirs.interval,
        timeout=mine.timeout or theirs.timeout,
        retries=mine.retries or theirs.retries,
        start_period=mine.start_period or theirs.start_period,
        start_interval=mine.start_interval or theirs.start_interval,
    )
