"""Different runtimes' words for one failure become the ones docker's clients look for."""

import pytest

from engine.runtime.oci import RuntimeFailure, exit_hint, normalise, parse_version


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
            ('unable to start container process: chdir to cwd ("/n") set in config.json failed: '
             "no such file or directory"),
        ),
        ("writing file `pids.max`: Invalid argument", "writing file `pids.max`: invalid argument"),
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
