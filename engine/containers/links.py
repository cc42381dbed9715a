"""The variables that ``--link`` puts in an environment: where the other container is, and what it was told. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from engine.containers.model import Container
from engine.containers.settings import HostConfig


def links_of(host: HostConfig) -> list[tuple[str, str]]:
    """The name and alias of each ``--link``, as given; without an alias the name is one.

    On a user-defined network there are none: there a link is a name that the network's name server resolves.
    """
    pairs: list[tuple[str, str]] = []
    if host.network_mode not in ("", "default", "bridge", "none"):
        return pairs
    for text in host.links or ():
        name, _, alias = text.partition(":")
        name = name.removeprefix("/")
        pairs.append((name, alias.removeprefix("/") or name))
    return pairs


def link_targets(container: Container) -> list[tuple[str, str]]:
    """The container that each link leads to, by id (by name in records that have no ids yet), and its alias."""
    return [(container.link_ids.get(alias, name), alias) for name, alias in links_of(container.host_config)]


def follow_rename(linking: Container, renamed: Container, new: str) -> Container:
    """``linking`` whose links to ``renamed`` have its new name, under the aliases they had."""
    pairs, targets = links_of(linking.host_config), link_targets(linking)
    hits = [target in (renamed.id, renamed.name) for target, _ in targets]
    if not any(hits):
        return linking
    links = tuple(f"{new if hit else name}:{alias}" for hit, (name, alias) in zip(hits, pairs, strict=True))
    host = msgspec.structs.replace(linking.host_config, links=links)
    return msgspec.structs.replace(linking, host_config=host)


_PRIVATE = ("HOME", "PATH")


def link_environment(name: str, alias: str, address: str, ports: Iterable[str], env: Sequence[str]) -> list[str]:
    """Docker's variables for one link.

    ``name`` is the linking container; ``ports`` (``80/tcp``) and ``env`` are the linked one's.
    """
    prefix = alias.replace("-", "_").upper()
    variables = [f"{prefix}_NAME=/{name}/{alias}"]
    sorted_ports = sorted((_split(port) for port in ports), key=lambda p: (p[1] != "tcp", p[0]))
    if sorted_ports:
        number, protocol = sorted_ports[0]
        variables.append(f"{prefix}_PORT={protocol}://{address}:{number}")
    for number, protocol in sorted_ports:
        one = f"{prefix}_PORT_{number}_{protocol.upper()}"
        variables += [
            f"{one}={protocol}://{address}:{number}",
            f"{one}_ADDR={address}",
            f"{one}_PORT={number}",
            f"{one}_PROTO={protocol}",
        ]
    for variable in env:
        key, equals, value = variable.partition("=")
        if equals and key not in _PRIVATE:
            variables.append(f"{prefix}_ENV_{key}={value}")
    return variables


def _split(port: str) -> tuple[int, str]:
    number, _, protocol = port.partition("/")
    return int(number.partition("-")[0]), protocol or "tcp"
