"""Talk to nftables: run a batch of statements as one transaction, list a table, and hear when somebody changes it.

libnftables is used in process where it is installed (no fork, about 1 ms a transaction); the ``nft`` program otherwise.
Both take the same text, and a text is applied whole or not at all.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import subprocess
import threading
from typing import Any, Protocol

_OUTPUT_JSON = 1 << 4
_NETLINK_NETFILTER = 12
_GROUP_NFTABLES = 7
_SUBSYSTEM_NFTABLES = 10
_DELETIONS = {2: 1, 5: 1, 8: 1, 11: 1}
"""NFT_MSG_DELTABLE, DELCHAIN, DELRULE, DELSET: the attribute that names the table."""


class Nft(Protocol):
    """What the firewall needs of nftables."""

    def run_sync(self, script: str) -> None:
        """Apply a batch as one transaction. Raises ``OSError`` with nft's own words; then nothing has changed."""

    def list_sync(self, family: str, table: str) -> list[dict[str, Any]] | None:
        """The objects of a table as libnftables JSON, or None when there is no such table."""


class LibNft:
    """libnftables through ctypes. The context is not thread-safe, hence the lock."""

    def __init__(self) -> None:
        library = ctypes.CDLL("libnftables.so.1")
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        library.nft_ctx_free.argtypes = [ctypes.c_void_p]
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
            getattr(library, name).restype = ctypes.c_char_p
        self._library = library
        self._lock = threading.Lock()

    def _call(self, script: str, flags: int) -> tuple[int, str, str]:
        # A context a call: one that is kept serves its cache of sets after a foreign flush of the ruleset.
        with self._lock:
            context = self._library.nft_ctx_new(0)
            if not context:
                raise OSError("libnftables gives no context")
            try:
                self._library.nft_ctx_buffer_output(context)
                self._library.nft_ctx_buffer_error(context)
                self._library.nft_ctx_output_set_flags(context, flags)
                code = self._library.nft_run_cmd_from_buffer(context, script.encode())
                output = self._library.nft_ctx_get_output_buffer(context) or b""
                errors = self._library.nft_ctx_get_error_buffer(context) or b""
                return code, output.decode(), errors.decode()
            finally:
                self._library.nft_ctx_free(context)

    def run_sync(self, script: str) -> None:
        """See ``Nft``."""
        code, _, errors = self._call(script, 0)
        if code != 0:
            raise OSError(f"nftables: {errors.strip() or 'the kernel refused the ruleset'}")

    def list_sync(self, family: str, table: str) -> list[dict[str, Any]] | None:
        """See ``Nft``."""
        code, output, errors = self._call(f"list table {family} {table}", _OUTPUT_JSON)
        return _listing(code, output, errors)


class NftProgram:
    """The ``nft`` program, for hosts without the library."""

    def run_sync(self, script: str) -> None:
        """See ``Nft``."""
        done = subprocess.run(["nft", "-f", "-"], input=script, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode != 0:
            raise OSError(f"nftables: {done.stderr.strip()}")

    def list_sync(self, family: str, table: str) -> list[dict[str, Any]] | None:
        """See ``Nft``."""
        command = ["nft", "-j", "list", "table", family, table]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return _listing(done.returncode, done.stdout, done.stderr)


def _listing(code: int, output: str, errors: str) -> list[dict[str, Any]] | None:
    if code != 0:
        if "No such file or directory" in errors:
            return None
        raise OSError(f"nftables: {errors.strip()}")
    found: list[dict[str, Any]] = json.loads(output)["nftables"]
    return found


def open_nft() -> Nft:
    """The library where it is there, else the program. Raises ``FileNotFoundError`` when the host has neither."""
    try:
        return LibNft()
    except (OSError, AttributeError):
        pass
    program = NftProgram()
    program.run_sync("")
    return program


def open_watch() -> socket.socket:
    """A non-blocking socket that hears every change of the ruleset of this network namespace."""
    watch = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER
    )
    try:
        watch.bind((0, 1 << (_GROUP_NFTABLES - 1)))
    except OSError:
        watch.close()
        raise
    return watch


def tables_with_losses(watch: socket.socket) -> set[str]:
    """Read what is there: the tables that lost a rule, a chain, a set or themselves.

    ``*`` when notices were dropped.
    """
    found: set[str] = set()
    while True:
        try:
            data = watch.recv(262144)
        except BlockingIOError:
            return found
        except OSError as error:
            if error.errno != 105:  # ENOBUFS: the kernel dropped notices, so anything may have happened
                raise
            found.add("*")
            continue
        found |= _losses(data)


def _losses(data: bytes) -> set[str]:
    found: set[str] = set()
    offset = 0
    while offset + 20 <= len(data):
        size, kind = struct.unpack_from("=IH", data, offset)
        if size < 16:
            break
        if kind >> 8 == _SUBSYSTEM_NFTABLES and (kind & 0xFF) in _DELETIONS:
            found |= _table_names(data[offset + 20 : offset + size])
        offset += size + (-size % 4)
    return found


def _table_names(attributes: bytes) -> set[str]:
    offset = 0
    while offset + 4 <= len(attributes):
        size, kind = struct.unpack_from("=HH", attributes, offset)
        if size < 4:
            break
        if kind & 0x3FFF == 1:
            return {os.fsdecode(attributes[offset + 4 : offset + size].rstrip(b"\0"))}
        offset += size + (-size % 4)
    return set()
