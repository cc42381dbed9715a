"""Devices by the Container Device Interface: what its specification files say, and how that changes a container's.

Pure: the files are read by ``hostprobe.cdi_documents_sync``. Follows the CDI specification 0.8
(github.com/cncf-tags/container-device-interface); a later folder's file wins over an earlier one's of the same device.
``--gpus`` asks for a vendor's devices by number or by name, and is answered by CDI, too, where a vendor is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from engine.containers.host import DeviceNode
from engine.containers.settings import DeviceRequest, HostConfig

GPU_VENDORS = ("nvidia.com", "amd.com")
GPU_CAPABILITIES = frozenset(("gpu", "nvidia", "amd", "compute", "compat32", "graphics", "utility", "video", "display"))
_VENDOR = r"[A-Za-z](?:[\w.-]*[A-Za-z0-9])?"
_CLASS = r"[A-Za-z](?:[\w-]*[A-Za-z0-9])?"
_DEVICE = r"[A-Za-z0-9](?:[\w.:-]*[A-Za-z0-9])?"
_QUALIFIED = re.compile(f"{_VENDOR}/{_CLASS}={_DEVICE}", re.ASCII)


class CdiNode(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """``deviceNodes``: what is not said is taken from the host's device."""

    path: str
    host_path: str = ""
    type: str = ""
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    permissions: str = ""
    uid: int | None = None
    gid: int | None = None


class CdiMount(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """``mounts``: binds, unless their type says otherwise."""

    host_path: str
    container_path: str
    type: str = ""
    options: tuple[str, ...] = ()


class CdiHook(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """``hooks``, in the OCI runtime specification's words; the time-out in seconds."""

    hook_name: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


class CdiEdits(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """``containerEdits``."""

    env: tuple[str, ...] = ()
    device_nodes: tuple[CdiNode, ...] = ()
    mounts: tuple[CdiMount, ...] = ()
    hooks: tuple[CdiHook, ...] = ()
    additional_gids: tuple[int, ...] = msgspec.field(default=(), name="additionalGids")


class CdiDevice(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One device of a file's kind."""

    name: str
    container_edits: CdiEdits = CdiEdits()


class CdiDocument(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One specification file."""

    cdi_version: str
    kind: str
    devices: tuple[CdiDevice, ...] = ()
    container_edits: CdiEdits = CdiEdits()


@dataclass(frozen=True, slots=True)
class CdiCatalog:
    """The devices of all files by qualified name, and what is wrong with files that could not be used.

    ``is_on`` is False where the administrator turned CDI off.
    """

    devices: Mapping[str, tuple[CdiDocument, CdiDevice]] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    is_on: bool = True


def catalog_of(documents: Iterable[tuple[str, Any]]) -> CdiCatalog:
    """The catalog from (path, decoded content), in the order of precedence, least first."""
    devices: dict[str, tuple[CdiDocument, CdiDevice]] = {}
    places: dict[str, str] = {}
    conflicts: set[str] = set()
    warnings: list[str] = []
    for path, content in documents:
        try:
            document = msgspec.convert(content, CdiDocument)
            _check(document)
        except ValueError as error:
            warnings.append(_warning(path, f"failed to load CDI Spec {error}"))
            continue
        for device in document.devices:
            name = f"{document.kind}={device.name}"
            other = places.get(name)
            if other is not None and _folder(other) == _folder(path):
                words = f'conflicting device "{name}" (specs "{path}", "{other}")'
                warnings += [_warning(path, words), _warning(other, words)]
                conflicts.add(name)
            elif other is not None:
                conflicts.discard(name)  # of an earlier folder, and this one's wins
            places[name], devices[name] = path, (document, device)
    return CdiCatalog({name: found for name, found in devices.items() if name not in conflicts}, tuple(warnings))


def _check(document: CdiDocument) -> None:
    if not document.devices:
        raise ValueError("invalid CDI Spec: invalid spec, no devices")
    names = [device.name for device in document.devices]
    for name in names:
        if not is_qualified(f"{document.kind}={name}"):
            raise ValueError(f'invalid CDI Spec: "{document.kind}={name}" is no name of a device')
    if len(names) > len(set(names)):
        raise ValueError(f'invalid CDI Spec: invalid spec, multiple device "{max(names, key=names.count)}"')


def _warning(path: str, words: str) -> str:
    return f"CDI: Error associated with spec file {path}: {words}"


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def requested_names(host: HostConfig, catalog: CdiCatalog) -> tuple[str, ...]:
    """The qualified names of all devices that the settings ask for. Raises ``ValueError`` in dockerd's words."""
    names = [mapping.path_on_host for mapping in host.devices or () if is_qualified(mapping.path_on_host)]
    if names and not catalog.is_on:
        raise ValueError(_no_driver(DeviceRequest(driver="cdi")))
    for request in host.device_requests or ():
        names += _of_request(request, catalog)
    return tuple(dict.fromkeys(names))


def is_qualified(name: str) -> bool:
    """Whether it is a CDI device's name, ``vendor.com/class=name``."""
    return _QUALIFIED.fullmatch(name) is not None


def _of_request(request: DeviceRequest, catalog: CdiCatalog) -> list[str]:
    if request.driver == "cdi" and catalog.is_on:
        if request.count:
            raise ValueError("unexpected count in CDI device request")
        if request.options:
            raise ValueError("unexpected options in CDI device request")
        return list(request.device_ids or ())
    vendor = _gpu_vendor(request, catalog)
    if vendor is None:
        raise ValueError(_no_driver(request))
    if request.count and request.device_ids:
        raise ValueError("cannot set both Count and DeviceIDs on device request")
    if request.device_ids:
        return [i if is_qualified(i) else f"{vendor}/gpu={i}" for i in request.device_ids]
    if request.count < 0:
        return [f"{vendor}/gpu=all"]
    return [f"{vendor}/gpu={number}" for number in range(request.count)]


def _no_driver(request: DeviceRequest) -> str:
    wanted = " ".join(f"[{' '.join(group)}]" for group in request.capabilities or ())
    return f'could not select device driver "{request.driver}" with capabilities: [{wanted}]'


def _gpu_vendor(request: DeviceRequest, catalog: CdiCatalog) -> str | None:
    """Whose devices answer a ``--gpus``: the vendor that the driver names, or the first one there is."""
    wanted = {word for group in request.capabilities or () for word in group}
    if not request.driver and not any(set(group) <= GPU_CAPABILITIES for group in request.capabilities or ()):
        return None
    for vendor in GPU_VENDORS:
        if request.driver not in ("", vendor.partition(".")[0]) or ("nvidia" in wanted and vendor != "nvidia.com"):
            continue
        if any(name.startswith(f"{vendor}/gpu=") for name in catalog.devices):
            return vendor
    return None


def inject(spec: dict[str, Any], names: Sequence[str], catalog: CdiCatalog, on_host: Mapping[str, DeviceNode]) -> None:
    """Change a specification as the devices want it.

    ``on_host`` are the host's device files by path. Raises ``ValueError`` for a device that is in no file.
    """
    missing = [name for name in names if name not in catalog.devices]
    if missing:
        raise ValueError(f"CDI device injection failed: unresolvable CDI devices {', '.join(missing)}")
    seen: list[CdiDocument] = []
    for name in names:
        document, device = catalog.devices[name]
        if document not in seen:
            seen.append(document)
            _edit(spec, document.container_edits, on_host)
        _edit(spec, device.container_edits, on_host)


def host_paths(names: Sequence[str], catalog: CdiCatalog) -> list[str]:
    """The device files on the host that ``inject`` has to know of."""
    edits = [
        e for name in names if name in catalog.devices
        for e in (catalog.devices[name][0].container_edits, catalog.devices[name][1].container_edits)
    ]  # fmt: skip
    return [node.host_path or node.path for e in edits for node in e.device_nodes]


def _edit(spec: dict[str, Any], edits: CdiEdits, on_host: Mapping[str, DeviceNode]) -> None:
    process, linux = spec["process"], spec["linux"]
    for variable in edits.env:
        name = variable.partition("=")[0]
        process["env"] = [v for v in process["env"] if v.partition("=")[0] != name] + [variable]
    for node in edits.device_nodes:
        _add_node(linux, node, on_host.get(node.host_path or node.path))
    for mount in edits.mounts:
        spec["mounts"] = [m for m in spec["mounts"] if m["destination"] != mount.container_path]
        kind, options = mount.type or "bind", list(mount.options)
        if kind == "bind" and not {"bind", "rbind"} & set(options):
            options.append("rbind")
        place = {"destination": mount.container_path, "source": mount.host_path, "type": kind, "options": options}
        spec["mounts"].append(place)
    for hook in edits.hooks:
        entry: dict[str, Any] = {"path": hook.path, "args": list(hook.args), "env": list(hook.env)}
        if hook.timeout is not None:
            entry["timeout"] = hook.timeout
        spec.setdefault("hooks", {}).setdefault(hook.hook_name, []).append(entry)
    groups = process["user"]["additionalGids"]
    groups += [gid for gid in edits.additional_gids if gid and gid not in groups]


def _add_node(linux: dict[str, Any], node: CdiNode, found: DeviceNode | None) -> None:
    kind, major, minor = node.type, node.major, node.minor
    if found is not None and not (kind and (major or minor)):
        kind, major, minor = found.kind, found.major, found.minor
    if not kind:
        raise ValueError(f"CDI device injection failed: no device {node.host_path or node.path} on this host")
    device: dict[str, Any] = {"path": node.path, "type": kind, "major": major, "minor": minor}
    if (mode := node.file_mode if node.file_mode is not None else found.mode if found else None) is not None:
        device["fileMode"] = mode
    for key, wanted, known in (("uid", node.uid, found and found.uid), ("gid", node.gid, found and found.gid)):
        if (number := wanted if wanted is not None else known) is not None:
            device[key] = number
    linux["devices"] = [d for d in linux.get("devices") or () if d["path"] != node.path] + [device]
    if kind in ("b", "c"):
        rule = {"allow": True, "type": kind, "major": major, "minor": minor, "access": node.permissions or "rwm"}
        linux["resources"].setdefault("devices", []).append(rule)
