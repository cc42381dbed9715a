"""What ps prints becomes docker's table of one container's processes."""

from __future__ import annotations

import pytest

from engine.containers.processes import check_arguments, parse
from engine.errors import SystemFailure

PLAIN = """\
UID          PID    PPID  C STIME TTY          TIME CMD
root          10       1  0 07:00 ?        00:00:00 sleep 1000
root          11       1  0 07:00 ?        00:00:00 other
root          12      10  0 07:00 pts/0    00:00:01 sh -c  echo   a\u00a0b
"""

THREADS = """\
USER         PID COMMAND
root          10 server
-              - -
root          11 other
-              - -
"""


def test_only_the_containers_processes_are_listed() -> None:
    table = parse(PLAIN, {10, 12})
    assert table.titles == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert [row[1] for row in table.rows] == ["10", "12"]


def test_what_has_no_heading_belongs_to_the_last_column() -> None:
    table = parse(PLAIN, {12})
    assert table.rows == [["root", "12", "10", "0", "07:00", "pts/0", "00:00:01", "sh -c echo a\u00a0b"]]


def test_threads_follow_their_process() -> None:
    assert parse(THREADS, {10}).rows == [["root", "10", "server"], ["-", "-", "-"]]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("COMMAND\nsleep\n", "Couldn't find PID field in ps output"),
        ("PID CMD\nten sleep\n", "Unexpected pid 'ten': strconv.Atoi"),
    ],
)
def test_output_that_cannot_be_read(output: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(output, {10})


def test_the_pid_column_keeps_its_name() -> None:
    check_arguments("-o pid=PID,comm")
    check_arguments("-eo user=NAME,pid")
    with pytest.raises(SystemFailure, match='^specifying "foo=PID" is not allowed$'):
        check_arguments("-o foo=PID")
