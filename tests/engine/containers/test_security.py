"""Capabilities, the system-call filter, security options."""

from __future__ import annotations

import json

import pytest

from engine.containers.host import HostFacts
from engine.containers.security import (
    ALL_CAPABILITIES,
    DEFAULT_CAPABILITIES,
    SecurityOptions,
    apparmor_profile,
    capability_warnings,
    default_profile,
    granted_capabilities,
    parse_security_options,
    seccomp_filter,
    translate_seccomp,
    wanted_capabilities,
)
from engine.containers.settings import HostConfig

FACTS = HostFacts(capabilities=frozenset(ALL_CAPABILITIES), kernel=(6, 1))


@pytest.mark.parametrize(
    ("adds", "drops", "expected"),
    [
        (None, None, DEFAULT_CAPABILITIES),
        (("sys_time",), ("CAP_NET_RAW",), (*[c for c in DEFAULT_CAPABILITIES if c != "CAP_NET_RAW"], "CAP_SYS_TIME")),
        (("chown",), ("all",), ("CAP_CHOWN",)),
        (("ALL",), ("MKNOD",), tuple(c for c in ALL_CAPABILITIES if c != "CAP_MKNOD")),
        (None, ("ALL",), ()),
        (("CHOWN",), None, DEFAULT_CAPABILITIES),
    ],
)
def test_capability_rules(
    adds: tuple[str, ...] | None, drops: tuple[str, ...] | None, expected: tuple[str, ...]
) -> None:
    assert wanted_capabilities(HostConfig(cap_add=adds, cap_drop=drops)) == expected


def test_privileged_has_all_that_the_daemon_has() -> None:
    poor = HostFacts(capabilities=frozenset(ALL_CAPABILITIES) - {"CAP_SYS_RESOURCE"})
    granted = granted_capabilities(HostConfig(privileged=True), poor)
    assert set(ALL_CAPABILITIES) - set(granted) == {"CAP_SYS_RESOURCE"}


def test_what_the_daemon_lacks_is_a_warning_when_asked_for_by_name() -> None:
    poor = HostFacts(capabilities=frozenset(DEFAULT_CAPABILITIES))
    assert capability_warnings(HostConfig(cap_add=("ALL",)), poor) == []
    assert "CAP_SYS_TIME" in capability_warnings(HostConfig(cap_add=("SYS_TIME", "CHOWN")), poor)[0]


def test_unknown_capabilities_are_refused() -> None:
    with pytest.raises(ValueError, match='unknown capability: "CAP_FOO"'):
        wanted_capabilities(HostConfig(cap_add=("foo",)))


def test_security_options() -> None:
    options = parse_security_options(
        ("no-new-privileges", "seccomp=unconfined", "apparmor:mine", "label=disable", "disable", "writable-cgroups=1")
    )
    assert options == SecurityOptions(True, "unconfined", "mine", ("disable", "disable"), True)
    assert parse_security_options(("no-new-privileges=false",), no_new_privileges=True).no_new_privileges is False
    assert parse_security_options(None) == SecurityOptions()


@pytest.mark.parametrize(
    ("option", "words"),
    [("what", '1: "what"'), ("no-new-privileges=maybe", "2: "), ("foo=bar", '2: "foo=bar"')],
)
def test_bad_security_options(option: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"invalid --security-opt {words}"):
        parse_security_options((option,))


def _calls(filter_: dict[str, list[dict[str, object]]]) -> set[str]:
    allowed: set[str] = set()
    for rule in filter_["syscalls"]:
        if rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("args"):
            allowed |= set(rule["names"])  # type: ignore[call-overload]
    return allowed


def test_the_default_filter_depends_on_capabilities_architecture_and_kernel() -> None:
    plain = translate_seccomp(default_profile(), FACTS, DEFAULT_CAPABILITIES)
    assert plain["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    assert plain["defaultErrnoRet"] == 1
    assert {"read", "ptrace", "arch_prctl", "chroot"} <= _calls(plain)
    assert not {"mount", "bpf", "reboot", "clone3"} & _calls(plain)
    assert any(rule["names"] == ["clone3"] and rule["errnoRet"] == 38 for rule in plain["syscalls"])
    admin = translate_seccomp(default_profile(), FACTS, ALL_CAPABILITIES)
    assert {"mount", "bpf", "reboot", "clone3"} <= _calls(admin)
    old = translate_seccomp(default_profile(), HostFacts(kernel=(4, 4), arch="aarch64"), DEFAULT_CAPABILITIES)
    assert old["architectures"][0] == "SCMP_ARCH_AARCH64"
    assert "ptrace" not in _calls(old)
    assert "arch_prctl" not in _calls(old)


def test_profiles_of_users() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [
            {"name": "mkdir", "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
            {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "excludes": {"minKernel": "5.0"}},
            {"names": ["open"], "action": "SCMP_ACT_ERRNO", "excludes": {"arches": ["amd64"]}},
        ],
    }
    got = seccomp_filter(HostConfig(), SecurityOptions(seccomp=json.dumps(profile)), FACTS, ())
    assert got == {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [
            {
                "names": ["mkdir"],
                "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}],
            }
        ],
    }


def test_who_runs_without_a_filter() -> None:
    deaf = HostFacts(seccomp=False)
    assert seccomp_filter(HostConfig(privileged=True), SecurityOptions(), FACTS, ()) is None
    assert seccomp_filter(HostConfig(), SecurityOptions(seccomp="unconfined"), FACTS, ()) is None
    assert seccomp_filter(HostConfig(), SecurityOptions(), FACTS, (), "unconfined") is None
    assert seccomp_filter(HostConfig(), SecurityOptions(), deaf, ()) is None
    assert seccomp_filter(HostConfig(), SecurityOptions(seccomp="builtin"), FACTS, ()) is not None
    with pytest.raises(ValueError, match="seccomp is not enabled"):
        seccomp_filter(HostConfig(), SecurityOptions(seccomp="{}"), deaf, ())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Decoding seccomp profile failed"),
        ("[]", "not an object"),
        ('{"defaultAction": "X", "architectures": ["x"], "archMap": [{}]}', "'architectures' and 'archMap'"),
        ('{"syscalls": [{"name": "a", "names": ["b"], "action": "x"}]}', "'name' and 'names'"),
    ],
)
def test_bad_profiles(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        seccomp_filter(HostConfig(), SecurityOptions(seccomp=text), FACTS, ())


def test_apparmor_only_where_the_host_has_it() -> None:
    with_it = HostFacts(apparmor=True)
    assert apparmor_profile(HostConfig(), SecurityOptions(apparmor="x"), FACTS) == ""
    assert apparmor_profile(HostConfig(), SecurityOptions(), with_it) == "docker-default"
    assert apparmor_profile(HostConfig(), SecurityOptions(apparmor="x"), with_it) == "x"
    assert apparmor_profile(HostConfig(privileged=True), SecurityOptions(), with_it) == "unconfined"
