"""Different runtimes' words for one failure become the ones docker's clients look for."""

import json
from pathlib import Path

import pytest

from engine.runtime import oci
from engine.runtime.oci import Runtime, RuntimeFailure, exit_hint, normalise, parse_version, trouble_running


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
            "chdir `/n`: No such file or directory",
            ('unable to start container process: chdir to cwd ("/n") set in config.json failed: '
             "no such file or directory"),
        ),
        ("exec failed: something else", "something else"),
    ],
)
def test_words_are_runcs(words: str, text: str) -> None:
    assert normalise(words, "prog") == text


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('exec: "x": executable file not found in $PATH', 127),
        ("stat /x: no such file or directory", 127),
        ('exec: "/x": permission denied', 126),
        ('exec: "/tmp": is a directory', 126),
        ("error mounting: not a directory", 127),
        ("cgroups: cannot set memory", 128),
    ],
)
def test_exit_codes_are_dockerds(text: str, hint: int) -> None:
    assert exit_hint(text) == hint


def test_failures_read_like_dockerds() -> None:
    created = RuntimeFailure.of_create("runc run failed: unable to start container process: boom")
    assert created.message == (
        "failed to create shim task: OCI runtime create failed: runc create failed: "
        "unable to start container process: boom: unknown"
    )
    executed = RuntimeFailure.of_exec("exec failed: unable to start container process: boom")
    assert executed.message == "OCI runtime exec failed: exec failed: unable to start container process: boom: unknown"


def test_versions_are_found_in_what_runtimes_print() -> None:
    runc = "runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev\n"
    assert parse_version(runc) == ("1.1.5+ds1", "1.1.5+ds1-1+deb12u1")
    assert parse_version("crun version 1.8.1\ncommit: f8a096be\n") == ("1.8.1", "f8a096be")
    assert parse_version("unexpected") == ("", "")


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


def test_crun_is_told_to_run_a_container_in_its_scope_itself() -> None:
    """Else limits that are changed later, execs and counters miss the group that crun makes below the scope."""
    crun = Runtime("crun", "/usr/bin/crun", ("--systemd-cgroup",), "/run/x")
    assert oci.runtime_annotations(crun) == {"run.oci.systemd.subgroup": ""}
    assert oci.runtime_annotations(Runtime("crun", "/usr/bin/crun", (), "/run/x")) == {}
    assert oci.runtime_annotations(Runtime("runc", "/usr/bin/runc", ("--systemd-cgroup",), "/run/x")) == {}
