"""Threads that exist for one call: results and errors come back, the thread does not stay."""

import threading

import pytest

from engine.kernel import namespaces


def test_the_result_comes_back_from_a_thread_that_is_gone() -> None:
    ident = namespaces.in_thread_sync(threading.get_ident)
    assert ident != threading.get_ident()
    assert ident not in {thread.ident for thread in threading.enumerate()}


def test_errors_come_back_too() -> None:
    def fail() -> None:
        raise OSError(1, "no")

    with pytest.raises(OSError, match="no"):
        namespaces.in_thread_sync(fail)


def test_a_process_that_is_gone_has_no_namespace() -> None:
    with pytest.raises(FileNotFoundError):
        namespaces.open_namespace_sync(2**22 + 1)
