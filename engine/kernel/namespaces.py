"""Network namespaces without a mount and without a child process.

A namespace is made, entered or looked into by a thread that exists for that one call and dies with it, so no pool
thread ever keeps a changed namespace. What comes back are descriptors: the namespace, and sockets that stay in it
wherever they are used from. A namespace lives as long as a process in it or a descriptor of it, so nothing is left
behind by a crash.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from engine.kernel import idmap

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
NETLINK_ROUTE = 0

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class NetworkNamespace:
    """An open namespace: its descriptor and a route-netlink socket inside it.

    ``user_fd`` is the user namespace that it belongs to, where that is not the host's.
    """

    fd: int
    socket: socket.socket
    user_fd: int = -1

    @property
    def path(self) -> str:
        """A path other processes of this host can open while this descriptor is open."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @property
    def user_path(self) -> str:
        """The same for the user namespace; empty for the host's."""
        return f"/proc/{os.getpid()}/fd/{self.user_fd}" if self.user_fd >= 0 else ""

    def close(self) -> None:
        """Let go of it; the kernel removes the namespace, and the interfaces in it, with its last user."""
        for fd in (self.fd, self.user_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.user_fd = -1
        self.socket.close()


def _call(name: str, *args: int) -> None:
    if getattr(_libc, name)(*args) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def in_thread_sync(fn: Callable[[], T]) -> T:
    """Run ``fn`` on a thread of its own and wait for it; what ``fn`` does to its namespaces ends with the thread."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(fn())
        except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread, not swallowed
            errors.append(error)

    thread = threading.Thread(target=run, name="berth-netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def in_namespace_sync(fd: int, fn: Callable[[], T]) -> T:
    """Run ``fn`` inside the network namespace of descriptor ``fd``. Raises ``OSError`` when it cannot be entered."""

    def run() -> T:
        _call("setns", fd, CLONE_NEWNET)
        return fn()

    return in_thread_sync(run)


def _open_here() -> NetworkNamespace:
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return NetworkNamespace(
            fd, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
        )
    except OSError:
        os.close(fd)
        raise


def create_namespace_sync() -> NetworkNamespace:
    """A new, empty network namespace in which new interfaces have IPv6 off until somebody turns it on."""

    def run() -> NetworkNamespace:
        _call("unshare", CLONE_NEWNET)
        return _open_fresh()

    return in_thread_sync(run)


def _open_fresh() -> NetworkNamespace:
    # /proc/sys/net shows the namespace of the thread that opens it.
    _write_if_there("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
    return _open_here()


def create_mapped_sync(ids: idmap.IdMap, owner_pid: int = 0) -> NetworkNamespace:
    """The same, belonging to a new user namespace of ``ids``, or to that which ``owner_pid`` is in.

    Only who is root there may mount a /sys that shows it, for one.
    """
    with idmap.namespaces_sync(ids, owner_pid) as pid:
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            namespace = in_namespace_sync(fd, _open_fresh)
        finally:
            os.close(fd)
        try:
            namespace.user_fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            namespace.close()
            raise
        return namespace


def open_namespace_sync(pid: int) -> NetworkNamespace:
    """The network namespace of a running process. Raises ``OSError`` when the process is gone."""
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return in_namespace_sync(fd, _open_here)
    finally:
        os.close(fd)


def set_ipv6_sync(fd: int, interface: str, enabled: bool) -> None:
    """Turn IPv6 on or off for one interface of the namespace; without duplicate address detection, which costs a
    second."""
    base = f"/proc/sys/net/ipv6/conf/{interface}"

    def run() -> None:
        if enabled:
            _write_if_there(f"{base}/accept_dad", "0")
        _write_if_there(f"{base}/disable_ipv6", "0" if enabled else "1")

    in_namespace_sync(fd, run)


def write_sysctls_sync(fd: int, settings: Sequence[tuple[str, str]]) -> None:
    """Write (path below ``/proc/sys``, value) pairs inside the namespace. Raises ``OSError`` that names the file."""

    def run() -> None:
        for path, value in settings:
            file = Path("/proc/sys") / path
            if not file.is_file():
                raise FileNotFoundError(f"{file} is not a sysctl file")
            if file.read_text().strip() == value:
                continue
            try:
                file.write_text(value)
            except OSError as error:
                raise OSError(error.errno, f"unable to write to '{file}': {error.strerror}") from error

    in_namespace_sync(fd, run)


def _write_if_there(path: str, text: str) -> None:
    """A kernel without IPv6 has no such file; then there is nothing to turn off."""
    try:
        Path(path).write_text(text)
    except FileNotFoundError:
        return
