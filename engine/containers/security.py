"""What a container's process may do: capabilities, system-call filter, AppArmor profile, hidden and read-only paths.

Pure, and docker's defaults throughout. Words of errors are dockerd's.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from engine.containers.host import HostFacts
from engine.containers.settings import HostConfig

ALL_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
"""In the order of their kernel numbers (capability.h)."""

DEFAULT_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)

DEFAULT_MASKED_PATHS = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
DEFAULT_READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
DEFAULT_APPARMOR_PROFILE = "docker-default"

_SECCOMP_ARCHES = {
    "x86_64": ("SCMP_ARCH_X86_64", "amd64"),
    "aarch64": ("SCMP_ARCH_AARCH64", "arm64"),
    "armv7l": ("SCMP_ARCH_ARM", "arm"),
    "i686": ("SCMP_ARCH_X86", "x86"),
    "ppc64le": ("SCMP_ARCH_PPC64LE", "ppc64le"),
    "s390x": ("SCMP_ARCH_S390X", "s390x"),
    "riscv64": ("SCMP_ARCH_RISCV64", "riscv64"),
    "mips64": ("SCMP_ARCH_MIPS64", "mips64"),
}


@dataclass(frozen=True, slots=True)
class SecurityOptions:
    """The parsed ``--security-opt`` values; ``None`` means the default."""

    no_new_privileges: bool = False
    seccomp: str | None = None
    """``unconfined``, ``builtin``, or the text of a profile."""
    apparmor: str | None = None
    labels: tuple[str, ...] = ()
    writable_cgroups: bool | None = None


def parse_security_options(options: Sequence[str] | None, *, no_new_privileges: bool = False) -> SecurityOptions:
    """Parse the ``SecurityOpt`` list. Raises ``ValueError`` with dockerd's sentence."""
    parsed: dict[str, Any] = {"no_new_privileges": no_new_privileges}
    labels: list[str] = []
    for option in options or ():
        if option in ("no-new-privileges", "writable-cgroups"):
            parsed[option.replace("-", "_")] = True
            continue
        if option == "disable":
            labels.append("disable")
            continue
        separator = "=" if "=" in option else ":"
        key, found, value = option.partition(separator)
        if not found:
            raise ValueError(f'invalid --security-opt 1: "{option}"')
        if key == "label":
            labels.append(value)
        elif key in ("apparmor", "seccomp"):
            parsed[key] = value
        elif key in ("no-new-privileges", "writable-cgroups"):
            parsed[key.replace("-", "_")] = _go_bool(value, option)
        else:
            raise ValueError(f'invalid --security-opt 2: "{option}"')
    return SecurityOptions(**parsed, labels=tuple(labels))


def _go_bool(value: str, option: str) -> bool:
    if value in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if value in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise ValueError(f'invalid --security-opt 2: "{option}"')


def normalize_capabilities(names: Sequence[str] | None) -> tuple[str, ...]:
    """Upper case, ``CAP_`` in front, ``ALL`` kept. Raises ``ValueError`` for a name no kernel knows."""
    normal: list[str] = []
    for name in names or ():
        capability = name.upper()
        if capability != "ALL":
            capability = capability if capability.startswith("CAP_") else f"CAP_{capability}"
            if capability not in ALL_CAPABILITIES:
                raise ValueError(f'unknown capability: "{capability}"')
        normal.append(capability)
    return tuple(dict.fromkeys(normal))


def wanted_capabilities(host: HostConfig) -> tuple[str, ...]:
    """The capability set docker gives for these settings, before the host's own lack is considered."""
    if host.privileged:
        return ALL_CAPABILITIES
    adds = normalize_capabilities(host.cap_add)
    drops = normalize_capabilities(host.cap_drop)
    if "ALL" in adds:
        return tuple(c for c in ALL_CAPABILITIES if c not in drops)
    if "ALL" in drops:
        return adds
    kept = [c for c in DEFAULT_CAPABILITIES if c not in drops]
    return tuple(dict.fromkeys([*kept, *adds]))


def granted_capabilities(host: HostConfig, facts: HostFacts) -> tuple[str, ...]:
    """What is wanted and the daemon itself has: a runtime refuses to hand on what it lacks."""
    return tuple(c for c in wanted_capabilities(host) if c in facts.capabilities)


def capability_warnings(host: HostConfig, facts: HostFacts) -> list[str]:
    """One sentence for explicitly asked capabilities that this host cannot give."""
    asked = [c for c in normalize_capabilities(host.cap_add) if c != "ALL" and c not in facts.capabilities]
    if not asked:
        return []
    return [f"The daemon itself lacks {', '.join(asked)} on this host. Capability discarded."]


def seccomp_filter(
    host: HostConfig,
    options: SecurityOptions,
    facts: HostFacts,
    capabilities: Collection[str],
    default: str = "builtin",
) -> dict[str, Any] | None:
    """The ``linux.seccomp`` object, or ``None`` for unconfined. Raises ``ValueError`` for an unusable profile.

    ``default`` is the daemon's own profile: ``builtin``, ``unconfined``, or a profile's text.
    """
    wish = options.seccomp if options.seccomp is not None else default
    if host.privileged and options.seccomp is None:
        return None
    if wish == "unconfined":
        return None
    if not facts.seccomp:
        if options.seccomp is not None and wish != "builtin":
            raise ValueError("seccomp is not enabled in your kernel, cannot run a custom seccomp profile")
        return None
    profile = _profile(wish)
    if not profile.get("defaultAction") and not profile.get("syscalls"):
        return None  # a profile that says nothing filters nothing
    return translate_seccomp(profile, facts, capabilities)


def _profile(wish: str) -> Mapping[str, Any]:
    if wish in ("", "builtin"):
        return default_profile()
    try:
        profile = json.loads(wish)
    except ValueError as error:
        raise ValueError(f"Decoding seccomp profile failed: {error}") from error
    if not isinstance(profile, dict):
        raise ValueError("Decoding seccomp profile failed: the profile is not an object")
    return profile


@functools.cache
def default_profile() -> Mapping[str, Any]:
    """Docker's default profile, in docker's own format."""
    text = resources.files("engine.containers").joinpath("seccomp.json").read_text("utf-8")
    profile: dict[str, Any] = json.loads(text)
    return profile


def translate_seccomp(profile: Mapping[str, Any], facts: HostFacts, capabilities: Collection[str]) -> dict[str, Any]:
    """A profile in docker's format (rules with ``includes`` and ``excludes``) to the OCI form for this host and set."""
    if profile.get("architectures") and profile.get("archMap"):
        raise ValueError(
            "'architectures' and 'archMap' were specified in the seccomp profile, "
            "use either 'architectures' or 'archMap'"
        )
    native, arch = _SECCOMP_ARCHES.get(facts.arch, ("", facts.arch))
    translated: dict[str, Any] = {"defaultAction": profile.get("defaultAction", "SCMP_ACT_ERRNO")}
    if profile.get("defaultErrnoRet") is not None:
        translated["defaultErrnoRet"] = profile["defaultErrnoRet"]
    architectures = _architectures(profile, native)
    if architectures:
        translated["architectures"] = architectures
    for key in ("flags", "listenerPath", "listenerMetadata"):
        if profile.get(key):
            translated[key] = profile[key]
    calls = [_call(rule) for rule in profile.get("syscalls") or () if _applies(rule, arch, facts.kernel, capabilities)]
    translated["syscalls"] = calls
    return translated


def _architectures(profile: Mapping[str, Any], native: str) -> list[str]:
    for entry in profile.get("archMap") or ():
        if entry.get("architecture") == native:
            return [native, *(entry.get("subArchitectures") or ())]
    return list(profile.get("architectures") or ())


def _applies(rule: Mapping[str, Any], arch: str, kernel: tuple[int, int], capabilities: Collection[str]) -> bool:
    without: Mapping[str, Any] = rule.get("excludes") or {}
    if arch in (without.get("arches") or ()) or any(c in capabilities for c in without.get("caps") or ()):
        return False
    if without.get("minKernel") and kernel >= _version(without["minKernel"]):
        return False
    needs: Mapping[str, Any] = rule.get("includes") or {}
    if needs.get("arches") and arch not in needs["arches"]:
        return False
    if any(c not in capabilities for c in needs.get("caps") or ()):
        return False
    return not needs.get("minKernel") or kernel >= _version(needs["minKernel"])


def _version(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor.partition(".")[0] or 0)


def _call(rule: Mapping[str, Any]) -> dict[str, Any]:
    names = list(rule.get("names") or ())
    if rule.get("name"):
        if names:
            raise ValueError("'name' and 'names' were specified in the seccomp profile, use either 'name' or 'names'")
        names = [rule["name"]]
    call: dict[str, Any] = {"names": names, "action": rule["action"]}
    if rule.get("errnoRet") is not None:
        call["errnoRet"] = rule["errnoRet"]
    if rule.get("args"):
        call["args"] = [{k: v for k, v in arg.items() if k != "valueTwo" or v} for arg in rule["args"]]
    return call


def apparmor_profile(host: HostConfig, options: SecurityOptions, facts: HostFacts) -> str:
    """The profile's name, or empty where the host has no AppArmor or the container is to be unconfined."""
    if not facts.apparmor:
        return ""
    if options.apparmor is not None:
        return options.apparmor
    return "unconfined" if host.privileged else DEFAULT_APPARMOR_PROFILE
