"""Timers in order, children reaped, handlers forgotten inside a batch."""

import os
import signal

import pytest

from engine.shim.loop import MOST_FAULTS, READ, Loop, wake_on


def test_timers_fire_in_order_and_not_when_cancelled() -> None:
    loop = Loop(lambda _pid, _status: None)
    fired: list[str] = []
    loop.after(0.02, lambda: fired.append("second"))
    loop.after(0.01, lambda: fired.append("first"))
    loop.after(0.015, lambda: fired.append("never")).cancel()
    loop.after(0.03, loop.stop)
    loop.run()
    assert fired == ["first", "second"]
    loop.close()


def test_a_handler_forgotten_by_another_is_not_called() -> None:
    loop = Loop(lambda _pid, _status: None)
    pipes = [os.pipe(), os.pipe()]
    called: list[int] = []

    def handler(mine: int, other: int) -> None:
        called.append(mine)
        loop.forget(mine)
        loop.forget(other)
        loop.stop()

    (one, one_writer), (two, two_writer) = pipes
    loop.watch(one, READ, lambda _events: handler(one, two))
    loop.watch(two, READ, lambda _events: handler(two, one))
    for writer in (one_writer, two_writer):
        os.write(writer, b"x")
    loop.run()
    assert len(called) == 1
    for descriptor in (one, one_writer, two, two_writer):
        os.close(descriptor)
    loop.close()


def test_a_handler_that_keeps_failing_costs_only_its_own_descriptor(capsys: pytest.CaptureFixture[str]) -> None:
    loop = Loop(lambda _pid, _status: None)
    reader, writer = os.pipe()
    os.write(writer, b"x")
    calls: list[int] = []

    def handler(_events: int) -> None:
        calls.append(1)
        raise TypeError("a fault")

    loop.watch(reader, READ, handler)
    loop.after(0.05, loop.stop)
    loop.run()
    assert len(calls) == MOST_FAULTS
    assert "TypeError: a fault" in capsys.readouterr().err
    os.close(reader)
    os.close(writer)
    loop.close()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_children_are_reaped_with_their_status() -> None:
    """In a process of its own: the loop reaps every child there is, pytest's too."""
    observer = os.fork()
    if observer == 0:
        code = 1
        try:
            reaped: list[tuple[int, int]] = []

            def on_child(pid: int, status: int) -> None:
                reaped.append((pid, os.waitstatus_to_exitcode(status)))
                loop.stop()

            loop = Loop(on_child)
            wake_on(signal.SIGCHLD)
            loop.catch_signals()
            child = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 7"], {})
            loop.run()
            code = 0 if reaped == [(child, 7)] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(observer, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_request_to_end_is_told_apart_from_children() -> None:
    observer = os.fork()
    if observer == 0:
        code = 1
        try:
            told: list[int] = []

            def on_term() -> None:
                told.append(1)
                loop.stop()

            loop = Loop(lambda _pid, _status: None, on_term=on_term)
            wake_on(signal.SIGCHLD)
            wake_on(signal.SIGTERM)
            loop.catch_signals()
            loop.after(0, lambda: os.kill(os.getpid(), signal.SIGCHLD))
            loop.after(0.01, lambda: os.kill(os.getpid(), signal.SIGTERM))
            loop.after(20, loop.stop)
            loop.run()
            code = 0 if told == [1] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(observer, 0)[1]) == 0
