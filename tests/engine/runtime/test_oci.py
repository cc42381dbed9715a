"""Different runtimes' words for one failure become the ones docker's clients look for."""

import json
from pathlib import Path

import pytest

from engine.runtime import oci
from engine.runtime.cgroups import Cgroups
from engine.runtime.oci import (
    ExecGroups,
    Runtime,
    RuntimeFailure,
    exec_groups,
    exit_hint,
    normalise,
    offers_recursive_read_only,
    parse_version,
    trouble_running,
    uncounted_controllers_sync,
)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            'runc run failed: unable to start container process: exec: "nosuch": executable file not found in $PATH',
            'unable to start container process: exec: "nosuch": executable file not found in $PATH',
        ),
        (
            "executable file `nosuch` not found in $PATH: No such file or directory",
            'unable to start container process: exec: "nosuch": executable file not found in $PATH',
        ),
        (
            "executable file 'nosuch' not found: No such file or directory",
            'unable to start container process: exec: "nosuch": executable file not found in $PATH',
        ),
        (
            "executable file `/nosuch` not found in $PATH: No such file or directory",
            'unable to start container process: exec: "/nosuch": stat /nosuch: no such file or directory',
        ),
        (
            "open executable: Operation not permitted",
            'unable to start container process: exec: "prog": permission denied',
        ),
        (
            "open executable: Permission denied",
            'unable to start container process: exec: "prog": permission denied',
        ),
        (
            "open `/etc/passwd`: Permission denied",
            'unable to start container process: exec: "/etc/passwd": permission denied',
        ),
        (
            "error stat'ing file `/etc/passwd/x`: Not a directory",
            "unable to start container process: error during container init: stat /etc/passwd/x: not a directory",
        ),
        (
            "chdir `/n`: No such file or directory",
            (
                'unable to start container process: chdir to cwd ("/n") set in config.json failed: '
                "no such file or directory"
            ),
        ),
        (
            "mount `/etc` to `etc/passwd`: Not a directory",
            (
                "unable to start container process: error during container init: "
                'error mounting "/etc" to rootfs at "/etc/passwd": mount /etc:/etc/passwd: not a directory'
            ),
        ),
        (
            (
                'time="2026-01-01T00:00:00Z" level=warning msg="setting back"\n'
                'time="2026-01-01T00:00:01Z" level=error msg="write \\"50m\\": invalid argument"'
            ),
            'write "50m": invalid argument',
        ),
        ("chdir `rel`: No such file or directory", "Cwd must be an absolute path"),
        (
            "setrlimit `RLIMIT_NOFILE`: Operation not permitted",
            (
                "unable to start container process: error during container init: "
                "error setting rlimits for ready process: error setting rlimit type 7: operation not permitted"
            ),
        ),
        (
            "the sysctl `kernel.msgmax` requires a new IPC namespace",
            'sysctl "kernel.msgmax" is not allowed in the hosts ipc namespace',
        ),
        (
            "the sysctl `net.ipv4.ip_forward` requires a new network namespace",
            'sysctl "net.ipv4.ip_forward" not allowed in host network namespace',
        ),
        (
            "the sysctl `kernel.domainname` requires a new UTS namespace",
            'sysctl "kernel.domainname" is not in a separate kernel namespace',
        ),
        ("the sysctl `vm.x` is not namespaced", 'sysctl "vm.x" is not in a separate kernel namespace'),
        ("writing file `pids.max`: Invalid argument", "writing file `pids.max`: invalid argument"),
        ("exec failed: something else", "something else"),
    ],
)
def test_words_are_runcs(words: str, text: str) -> None:
    assert normalise(words, "prog") == text


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('exec: "/x": executable file not found in $PATH', 127),
        ("stat /x: no such file or directory", 127),
        ('exec: "/x": permission denied', 126),
        ('exec: "/x": is a directory', 126),
        ('chdir to cwd ("/nosuch") set in config.json failed: no such file or directory', 127),
        ('chdir to cwd ("/etc/passwd") set in config.json failed: not a directory', 126),
        ("mkdir `/proc/y`: no such file or directory", 128),  # not the program's fault
        ("cgroups: cannot set memory", 128),
    ],
)
def test_exit_codes_are_dockerds(text: str, hint: int) -> None:
    assert exit_hint(text, "/x") == hint


def test_failures_read_like_dockerds() -> None:
    created = RuntimeFailure.of_create("runc run failed: unable to start container process: boom", "x")
    assert created.message == (
        "failed to create shim task: OCI runtime create failed: runc create failed: "
        "unable to start container process: boom: unknown"
    )
    executed = RuntimeFailure.of_exec("exec failed: unable to start container process: boom", "x")
    assert executed.message == "OCI runtime exec failed: exec failed: unable to start container process: boom: unknown"


def test_versions_are_found_in_what_runtimes_print() -> None:
    runc = "runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev\n"
    assert parse_version(runc) == ("runc", "1.1.5+ds1", "1.1.5+ds1-1+deb12u1")
    assert parse_version("crun version 1.8.1\ncommit: f8a096be\n") == ("crun", "1.8.1", "f8a096be")
    assert parse_version("unexpected") == ("", "", "")


def test_no_program_at_all_is_not_found() -> None:
    assert "executable file not found" in normalise("open executable: Permission denied", "")


def test_a_folder_over_a_file_is_asked_about() -> None:
    failure = RuntimeFailure.of_create("mount `/etc` to `etc/passwd`: Not a directory", "true")
    assert failure.message.endswith(
        "unknown: Are you trying to mount a directory onto a file (or vice-versa)? "
        "Check if the specified host path exists and is the expected type"
    )
    assert failure.exit_hint == 127


def runtime(path: str, version: str) -> Runtime:
    return Runtime("any", path, (), "/run/x", version, program=path.rpartition("/")[2])


def test_which_runtime_can_be_asked_for_groups_of_execs() -> None:
    crun = runtime("/usr/bin/crun", "1.8.1")
    assert exec_groups(crun, 1) is ExecGroups.COVERED
    assert exec_groups(runtime("/usr/bin/runc", "1.1.5+ds1"), 1) is ExecGroups.ASKED
    assert exec_groups(runtime("/usr/bin/runc", "1.0.3"), 1) is ExecGroups.NO
    assert exec_groups(runtime("/opt/youki", "9.9"), 1) is ExecGroups.NO


def test_on_v2_execs_stay_where_their_limits_are() -> None:
    for path, version in (("/usr/bin/crun", "1.8.1"), ("/usr/bin/runc", "1.1.5")):
        assert exec_groups(runtime(path, version), 2) is ExecGroups.NO


def test_which_runtime_makes_trees_read_only() -> None:
    assert offers_recursive_read_only(runtime("runc", "1.1.5"))
    assert not offers_recursive_read_only(runtime("crun", "1.8.1"))
    assert offers_recursive_read_only(runtime("crun", "1.14"))
    assert not offers_recursive_read_only(runtime("youki", "1.0"))


@pytest.mark.parametrize(
    ("v1", "unified", "on_v2", "covered"),
    [
        ({"memory": "/m", "cpu": "/c"}, "/sys/fs/cgroup/unified", {"hugetlb"}, True),
        ({"memory": "/m", "cpu": "/c"}, "/sys/fs/cgroup/unified", set(), False),  # crun takes it as it is
        ({"memory": "/m", "cpu": "/c"}, "/sys/fs/cgroup/unified", {"pids"}, False),  # a limit would be lost
        ({"memory": "/m"}, "/elsewhere", {"hugetlb"}, False),  # crun does not look there
        ({}, "/sys/fs/cgroup/unified", {"memory", "hugetlb"}, False),
    ],
)
def test_crun_is_spared_controllers_that_limit_nothing(
    v1: dict[str, str], unified: str, on_v2: set[str], covered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = Cgroups(v1, unified, controllers=frozenset(v1) | on_v2)
    monkeypatch.setattr(oci.Cgroups, "detect_sync", lambda: groups)
    expected = (f"{unified}/cgroup.controllers",) if covered else ()
    assert uncounted_controllers_sync() == expected


@pytest.mark.parametrize(
    ("args", "place"), [((), "/docker/berth-probe-"), (("--systemd-cgroup",), "system.slice:docker:berth-probe-")]
)
async def test_the_probe_names_its_control_group_as_the_driver_does(
    tmp_path: Path, args: tuple[str, ...], place: str
) -> None:
    """runc and crun refuse the other driver's form, and nothing would start on a host with systemd and v2."""
    fake = tmp_path / "runc"
    fake.write_text(f'#!/bin/sh\nwhile [ "$1" != --bundle ]; do shift; done\ncp "$2/config.json" {tmp_path}\n')
    fake.chmod(0o755)
    assert await trouble_running(Runtime("runc", str(fake), args, str(tmp_path))) == ""
    assert json.loads((tmp_path / "config.json").read_text())["linux"]["cgroupsPath"].startswith(place)


async def test_a_host_without_a_working_runtime_is_told_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "runc"
    fake.write_text('#!/bin/sh\n[ "$1" = --version ] || { echo no cgroups >&2; exit 1; }\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(oci, "PREFERENCE", ("runc",))
    with pytest.raises(FileNotFoundError, match="no OCI runtime works on this host; runc: no cgroups"):
        await oci.probe_runtimes({}, None, tmp_path)


def test_a_shared_tmpfs_is_for_runc() -> None:
    crun, runc = runtime("/usr/bin/crun", "1.8.1"), runtime("/usr/sbin/runc", "1.1.5")
    assert oci.Runtimes({"crun": crun, "runc": runc}, "crun").sharing == "runc"
    assert oci.Runtimes({"crun": crun, "runc": runc}, "runc").sharing == ""
    assert oci.Runtimes({"crun": crun}, "crun").sharing == ""


async def test_a_configured_runtime_whose_program_is_missing_is_known(tmp_path: Path) -> None:
    configured = {"vm": {"path": "/no/vm-manager", "runtimeArgs": ["--debug"]}}
    found = await oci.probe_runtimes(configured, "vm", tmp_path)
    assert (found.known["vm"].path, found.known["vm"].args, found.default) == ("/no/vm-manager", ("--debug",), "vm")
    with pytest.raises(FileNotFoundError, match="specified default runtime 'other' does not exist"):
        await oci.probe_runtimes(configured, "other", tmp_path)


@pytest.mark.parametrize(("words", "hint"), [("no such file or directory", 127), ("permission denied", 126)])
def test_a_runtime_that_cannot_be_started_is_named(words: str, hint: int) -> None:
    failure = RuntimeFailure.of_create(f"fork/exec /no/vm-manager: {words}", "true")
    assert failure.message == (
        f"failed to create shim task: OCI runtime create failed: fork/exec /no/vm-manager: {words}: unknown"
    )
    assert failure.exit_hint == hint


def test_crun_is_told_to_run_a_container_in_its_scope_itself() -> None:
    """Else limits that are changed later, execs and counters miss the group that crun makes below the scope."""
    def described(program: str, *args: str) -> Runtime:
        return Runtime("any", "/usr/bin/any", args, "/run/x", program=program)

    assert oci.runtime_annotations(described("crun", "--systemd-cgroup"), {}) == {"run.oci.systemd.subgroup": ""}
    limits = {"pids": {"limit": 7}}
    assert oci.runtime_annotations(described("crun", "--systemd-cgroup"), limits) == {
        "run.oci.systemd.subgroup": "",
        "org.systemd.property.TasksMax": "uint64 7",
    }
    assert oci.runtime_annotations(described("crun"), limits) == {}
    assert oci.runtime_annotations(described("runc", "--systemd-cgroup"), limits) == {}
