"""Command-line options of `berth run` turned into the body of a create request (pure)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

_SIZE_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str) -> int:
    """A size in bytes: digits and one of b, k, m, g, t (powers of 1024)."""
    lowered = text.strip().lower().removesuffix("b") or "0"
    unit = lowered[-1] if lowered[-1].isalpha() else ""
    try:
        return int(float(lowered.removesuffix(unit)) * _SIZE_UNITS[unit])
    except (ValueError, KeyError):
        raise click.BadParameter(f"invalid size: '{text}'") from None


def parse_pairs(values: Iterable[str]) -> dict[str, str]:
    """`KEY=VALUE` (or `KEY` for an empty value) as a mapping."""
    return dict(value.partition("=")[::2] for value in values)


def environment(values: Iterable[str], files: Iterable[str], ours: Mapping[str, str] = os.environ) -> list[str]:
    """`-e` and `--env-file` in order; a bare name takes our own value, or is left out where we have none."""
    entries: list[str] = []
    for name in files:
        lines = (line.strip() for line in Path(name).read_text(encoding="utf-8").splitlines())
        entries += [line for line in lines if line and not line.startswith("#")]
    entries += values
    resolved = []
    for entry in entries:
        if "=" in entry:
            resolved.append(entry)
        elif entry in ours:
            resolved.append(f"{entry}={ours[entry]}")
    return resolved


def _port_range(text: str, spec: str) -> list[int]:
    first, _, last = text.partition("-")
    try:
        start, end = int(first), int(last or first)
    except ValueError:
        raise click.BadParameter(f"invalid port: '{spec}'") from None
    if not 0 < start <= end <= 65535:
        raise click.BadParameter(f"invalid port: '{spec}'")
    return list(range(start, end + 1))


def parse_ports(specs: Iterable[str]) -> tuple[dict[str, Any], dict[str, list[dict[str, str]]]]:
    """`[[IP:]HOST:]CONTAINER[/PROTO]`, ranges included, as ExposedPorts and PortBindings."""
    exposed: dict[str, Any] = {}
    bindings: dict[str, list[dict[str, str]]] = {}
    for spec in specs:
        body, _, protocol = spec.partition("/")
        left, _, container = body.rpartition(":")
        address, _, host = left.rpartition(":")
        inside = _port_range(container, spec)
        outside: list[str] = [str(port) for port in _port_range(host, spec)] if host else [""] * len(inside)
        if len(inside) == 1 and len(outside) > 1:
            outside = [host]
        if len(inside) != len(outside):
            raise click.BadParameter(f"invalid ranges specified for container and host Ports: '{spec}'")
        for port, host_port in zip(inside, outside, strict=True):
            key = f"{port}/{protocol or 'tcp'}"
            exposed[key] = {}
            bindings.setdefault(key, []).append({"HostIp": address.strip("[]"), "HostPort": host_port})
    return exposed, bindings


def _volumes(specs: Iterable[str]) -> tuple[list[str], dict[str, Any]]:
    binds: list[str] = []
    anonymous: dict[str, Any] = {}
    for spec in specs:
        if ":" not in spec:
            anonymous[spec] = {}
            continue
        source, _, rest = spec.partition(":")
        if source.startswith("."):
            source = str(Path(source).resolve())
        binds.append(f"{source}:{rest}")
    return binds, anonymous


def _restart_policy(text: str) -> dict[str, Any]:
    name, _, count = text.partition(":")
    return {"Name": name, "MaximumRetryCount": int(count or 0)}


def create_body(image: str, command: tuple[str, ...], options: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON document for `POST /containers/create`."""
    exposed, bindings = parse_ports(options["publish"])
    binds, anonymous = _volumes(options["volume"])
    attached = not options["detach"]
    body: dict[str, Any] = {
        "Image": image,
        "Cmd": list(command) or None,
        "Hostname": options["hostname"] or "",
        "User": options["user"] or "",
        "Env": environment(options["env"], options["env_file"]),
        "Labels": parse_pairs(options["label"]),
        "WorkingDir": options["workdir"] or "",
        "Tty": options["tty"],
        "OpenStdin": options["interactive"],
        "StdinOnce": options["interactive"] and attached,
        "AttachStdin": options["interactive"] and attached,
        "AttachStdout": attached,
        "AttachStderr": attached,
        "ExposedPorts": exposed,
        "Volumes": anonymous,
        "HostConfig": _host_config(options, binds, bindings),
    }
    if options["entrypoint"] is not None:
        body["Entrypoint"] = [options["entrypoint"]] if options["entrypoint"] else [""]
    return body


def _host_config(options: Mapping[str, Any], binds: list[str], bindings: dict[str, Any]) -> dict[str, Any]:
    host: dict[str, Any] = {
        "AutoRemove": options["rm"],
        "Binds": binds,
        "PortBindings": bindings,
        "PublishAllPorts": options["publish_all"],
        "NetworkMode": options["network"],
        "RestartPolicy": _restart_policy(options["restart"]),
        "Privileged": options["privileged"],
        "ReadonlyRootfs": options["read_only"],
        "CapAdd": list(options["cap_add"]) or None,
        "CapDrop": list(options["cap_drop"]) or None,
        "SecurityOpt": list(options["security_opt"]) or None,
        "ExtraHosts": list(options["add_host"]) or None,
        "Dns": list(options["dns"]),
        "Tmpfs": dict(spec.partition(":")[::2] for spec in options["tmpfs"]),
        "Runtime": options["runtime"] or "",
        "PidMode": options["pid"] or "",
    }
    if options["init"]:
        host["Init"] = True
    if options["memory"]:
        host["Memory"] = parse_size(options["memory"])
    if options["cpus"]:
        host["NanoCpus"] = int(options["cpus"] * 1e9)
    if options["pids_limit"]:
        host["PidsLimit"] = options["pids_limit"]
    return host
