"""What can go wrong with a remote registry, in the words docker prints.

`RemoteError` is an answer; `ConnectionFailed` is the lack of one. The Go client's sentences are matched on by tools, so
they are rebuilt here from what aiohttp raises.
"""

from __future__ import annotations

import errno
import re
import ssl
from dataclasses import dataclass

import aiohttp
import msgspec


class _Entry(msgspec.Struct):
    code: str = "UNKNOWN"
    message: str = ""


class _ErrorDocument(msgspec.Struct):
    errors: list[_Entry] = []
    details: str = ""


@dataclass(eq=False)
class RemoteError(Exception):
    """An answer other than success: its status, and the first error of the document where there is one."""

    method: str
    url: str
    status: int
    code: str = ""
    message: str = ""

    @classmethod
    def of(cls, method: str, url: str, status: int, body: bytes) -> RemoteError:
        """Read the error document of an answer, if it is one."""
        try:
            document = msgspec.json.decode(body, type=_ErrorDocument)
        except (msgspec.DecodeError, UnicodeDecodeError):
            document = _ErrorDocument()
        if document.errors:
            return cls(method, url, status, document.errors[0].code.upper(), document.errors[0].message)
        return cls(method, url, status, _CODES.get(status, ""), document.details)

    def __str__(self) -> str:
        if self.code:
            words = self.code.lower().replace("_", " ")
            return f"{words}: {self.message or _MESSAGES.get(self.code, words)}"
        return f"received unexpected HTTP status: {self.status} {self.reason}".rstrip()

    @property
    def reason(self) -> str:
        """The words of the status."""
        return _REASONS.get(self.status, "")

    @property
    def is_temporary(self) -> bool:
        """Whether the same request may succeed a little later."""
        return self.status in (408, 429, 500, 502, 503, 504)


# For answers without a document (HEAD requests have none), as docker's client fills in.
_CODES = {401: "UNAUTHORIZED", 403: "DENIED", 404: "", 429: "TOOMANYREQUESTS"}
_MESSAGES = {
    "UNAUTHORIZED": "authentication required",
    "DENIED": "requested access to the resource is denied",
    "MANIFEST_UNKNOWN": "manifest unknown",
    "NAME_UNKNOWN": "repository name not known to registry",
    "TOOMANYREQUESTS": "too many requests",
}
_REASONS = {
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found", 405: "Method Not Allowed", 500: "Internal Server Error", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Gateway Timeout",
}  # fmt: skip


class ConnectionFailed(Exception):
    """No answer: no route, no TLS, or a connection that broke. `cause` says why without naming the request."""

    def __init__(self, method: str, url: str, cause: str) -> None:
        super().__init__(f'{method.capitalize()} "{url}": {cause}')
        self.cause = cause


class NoCredentials(Exception):
    """The registry wants a password and none was given."""

    def __init__(self, url: str = "") -> None:
        super().__init__("no basic auth credentials")
        self.url = url


def connection_failed(method: str, url: str, error: Exception) -> ConnectionFailed:
    """The sentence for what aiohttp raised."""
    return ConnectionFailed(method, url, _cause(error))


# asyncio names the address it tried only in its message.
_ADDRESS = re.compile(r"\('([0-9a-f.:]+)', \d+")
_CONNECT = {
    "ECONNREFUSED": "connection refused",
    "EHOSTUNREACH": "no route to host",
    "ENETUNREACH": "network is unreachable",
}


def _cause(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _certificate_cause(error.certificate_error)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"dial tcp: lookup {error.host}: no such host"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return _tls_cause(error.os_error)
    if isinstance(error, aiohttp.ClientConnectorError):
        reason = errno.errorcode.get(error.os_error.errno or 0, "")
        words = _CONNECT.get(reason) or error.os_error.strerror or str(error)
        address = _ADDRESS.search(str(error.os_error))
        return f"dial tcp {address[1] if address else error.host}:{error.port}: connect: {words}"
    if isinstance(error, TimeoutError):
        return "net/http: request canceled (Client.Timeout exceeded while awaiting headers)"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "EOF"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "unexpected EOF"
    return str(error) or type(error).__name__


def _tls_cause(error: BaseException) -> str:
    reason = getattr(error, "reason", "") or str(error)
    if isinstance(error, ssl.SSLError) and ("WRONG_VERSION" in reason or "RECORD" in reason or "HTTP" in reason):
        return "http: server gave HTTP response to HTTPS client"
    return f"tls: {reason.lower().replace('_', ' ')}"


def _certificate_cause(error: Exception) -> str:
    text = getattr(error, "verify_message", "") or str(error)
    if ("self" in text and "signed" in text) or "unable to get" in text:
        return "tls: failed to verify certificate: x509: certificate signed by unknown authority"
    if "expired" in text:
        return "tls: failed to verify certificate: x509: certificate has expired or is not yet valid"
    return f"tls: failed to verify certificate: x509: {text}"
