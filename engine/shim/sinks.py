"""How remote log drivers reach their servers: one connection that is made again when it breaks.

The errors read like Go's, because that is what users of these drivers search for.
"""

import contextlib
import os
import socket
from typing import Any

from engine.shim.logqueue import Sink

CONNECT_SECONDS = 5.0
# How long a server may take to hear the end.
FINISH_SECONDS = 2.0

_DATAGRAM = ("udp", "unixgram")


class Connection:
    """A socket to a `network` (udp, tcp, tcp+tls, tls, unix, unixgram) and an address (host:port or a path)."""

    def __init__(self, network: str, address: str, tls: dict[str, Any] | None = None) -> None:
        self.network = network
        self.address = address
        self._tls = tls
        self._socket: socket.socket | None = None

    @property
    def keeps_bounds(self) -> bool:
        """Whether what is sent at once arrives at once."""
        return self.network in _DATAGRAM

    def connect(self) -> socket.socket:
        """Connect, or keep the connection there is. OSError in Go's words."""
        if self._socket is None:
            try:
                self._socket = self._dial()
            except OSError as error:
                raise OSError(self._explain(error)) from error
            self._socket.settimeout(None)
        return self._socket

    def send(self, data: bytes) -> None:
        """Send all of it. OSError: the connection is gone, and how much arrived is unknown."""
        connection = self.connect()
        try:
            connection.sendall(data)
        except OSError:
            self.close()
            raise

    def receive(self, size: int) -> bytes:
        """Some bytes of an answer; OSError at the end."""
        data = self.connect().recv(size)
        if not data:
            self.close()
            raise ConnectionResetError("EOF")
        return data

    def close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None

    def finish(self) -> None:
        """Close when the server has everything: with unread words of its own (TLS has some) the kernel would drop what
        it has not sent yet."""
        if self._socket is not None and not self.keeps_bounds:
            with contextlib.suppress(OSError):
                self._socket.settimeout(FINISH_SECONDS)
                self._socket.shutdown(socket.SHUT_WR)
                while self._socket.recv(65536):
                    pass
        self.close()

    def _dial(self) -> socket.socket:
        if self.network in ("unix", "unixgram"):
            kind = socket.SOCK_DGRAM if self.network == "unixgram" else socket.SOCK_STREAM
            connection = socket.socket(socket.AF_UNIX, kind)
            try:
                connection.settimeout(CONNECT_SECONDS)
                connection.connect(self.address)
            except OSError:
                connection.close()
                raise
            return connection
        host, _, port = self.address.rpartition(":")
        host = host.strip("[]") or "127.0.0.1"
        if self.network == "udp":
            family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
            datagrams = socket.socket(family, kind, protocol)
            datagrams.connect(address)
            return datagrams
        context = _context(self._tls or {}) if self.network in ("tls", "tcp+tls") else None
        stream = socket.create_connection((host, int(port)), CONNECT_SECONDS)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream if context is None else context.wrap_socket(stream, server_hostname=host)

    def _explain(self, error: OSError) -> str:
        network = "tcp" if self.network in ("tls", "tcp+tls") else self.network
        if isinstance(error, socket.gaierror):
            return f"dial {network}: lookup {self.address.rpartition(':')[0]}: no such host"
        if isinstance(error, TimeoutError):
            return f"dial {network} {self.address}: i/o timeout"
        if type(error).__module__ == "ssl":
            return _tls_words(error)
        if error.errno is None:
            return str(error)
        return f"dial {network} {self.address}: connect: {os.strerror(error.errno).lower()}"


def _context(given: dict[str, Any]) -> Any:
    """What to trust and to show, from files. OSError in docker's words for one that is not what it should be."""
    import ssl  # megabytes that only this needs

    try:
        context = ssl.create_default_context(cafile=given.get("ca") or None)
    except ssl.SSLError as error:
        raise OSError(f'failed to append certificates from PEM file: "{given["ca"]}"') from error
    except OSError as error:
        words = _opening(given["ca"], error)
        raise OSError(f'could not read CA certificate "{given["ca"]}": {words}') from error
    if given.get("skip_verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    cert, key = given.get("cert") or "", given.get("key") or ""
    if cert or key:
        try:
            for path in (cert, key):  # a path that is missing is named; ssl would not say which
                with open(path, "rb"):
                    pass
            context.load_cert_chain(cert, key)
        except ssl.SSLError as error:
            raise OSError(f"could not load X509 key pair: {_tls_words(error)}") from error
        except OSError as error:
            raise OSError(f"could not load X509 key pair: {_opening(str(error.filename or ''), error)}") from error
    return context


def _opening(path: str, error: OSError) -> str:
    return f"open {path}: {os.strerror(error.errno).lower()}" if error.errno else str(error)


def _tls_words(error: OSError) -> str:
    reason = getattr(error, "verify_message", "")
    if reason:
        if "signed" in reason or "unable to get" in reason:
            reason = "certificate signed by unknown authority"
        elif "expired" in reason or "not yet valid" in reason:
            reason = "certificate has expired or is not yet valid"
        return f"tls: failed to verify certificate: x509: {reason}"
    return f"tls: {(getattr(error, 'reason', '') or str(error)).lower().replace('_', ' ')}"


def open_sink(driver: str, settings: dict[str, Any]) -> Sink:
    """The driver's sink, connected where the driver wants that at the start."""
    match driver:
        case "syslog":
            from engine.shim.syslog import Syslog

            return Syslog(settings)
        case "gelf":
            from engine.shim.gelf import Gelf

            return Gelf(settings)
        case "fluentd":
            from engine.shim.fluentd import Fluentd

            return Fluentd(settings)
        case _:
            from engine.shim.journald import Journald

            return Journald(settings)
