"""The registry's errors: distribution's codes with text and status in one table, raised as one exception kind.

The server writes them in one place as `{"errors":[{"code","message","detail"}]}`. Store modules raise the few domain
exceptions below; they know nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from registry.digest import Digest


@dataclass(frozen=True, slots=True)
class Code:
    """One row of the table: the code on the wire, its default words and its status."""

    name: str
    message: str
    status: int


UNKNOWN = Code("UNKNOWN", "unknown error", 500)
UNSUPPORTED = Code("UNSUPPORTED", "The operation is unsupported.", 405)
UNAUTHORIZED = Code("UNAUTHORIZED", "authentication required", 401)
DENIED = Code("DENIED", "requested access to the resource is denied", 403)
UNAVAILABLE = Code("UNAVAILABLE", "service unavailable", 503)
TOOMANYREQUESTS = Code("TOOMANYREQUESTS", "too many requests", 429)
DIGEST_INVALID = Code("DIGEST_INVALID", "provided digest did not match uploaded content", 400)
SIZE_INVALID = Code("SIZE_INVALID", "provided length did not match content length", 400)
RANGE_INVALID = Code("RANGE_INVALID", "invalid content range", 416)
NAME_INVALID = Code("NAME_INVALID", "invalid repository name", 400)
TAG_INVALID = Code("TAG_INVALID", "manifest tag did not match URI", 400)
NAME_UNKNOWN = Code("NAME_UNKNOWN", "repository name not known to registry", 404)
MANIFEST_UNKNOWN = Code("MANIFEST_UNKNOWN", "manifest unknown", 404)
MANIFEST_INVALID = Code("MANIFEST_INVALID", "manifest invalid", 400)
MANIFEST_TOO_LARGE = Code("MANIFEST_INVALID", "manifest invalid", 413)
MANIFEST_BLOB_UNKNOWN = Code("MANIFEST_BLOB_UNKNOWN", "blob unknown to registry", 400)
BLOB_UNKNOWN = Code("BLOB_UNKNOWN", "blob unknown to registry", 404)
BLOB_UPLOAD_UNKNOWN = Code("BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry", 404)
BLOB_UPLOAD_INVALID = Code("BLOB_UPLOAD_INVALID", "blob upload invalid", 404)
PAGINATION_NUMBER_INVALID = Code("PAGINATION_NUMBER_INVALID", "invalid number of results requested", 400)
PRECONDITION_FAILED = Code("UNKNOWN", "the content is not what If-Match names", 412)
STORAGE_FULL = Code("UNKNOWN", "insufficient storage", 507)
QUOTA_EXCEEDED = Code("DENIED", "the storage quota of this repository is used up", 403)


class RegistryError(Exception):
    """An answer other than success, with everything the one error writer needs."""

    def __init__(
        self, code: Code, detail: Any = None, *, message: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message or code.message)
        self.code = code
        self.detail = detail
        self.message = message or code.message
        self.headers = dict(headers or {})

    @property
    def status(self) -> int:
        """The HTTP status of the answer."""
        return self.code.status

    def entries(self) -> list[dict[str, Any]]:
        """The `errors` list of the document."""
        entry: dict[str, Any] = {"code": self.code.name, "message": self.message}
        if self.detail is not None:
            entry["detail"] = self.detail
        return [entry]


class SeveralErrors(RegistryError):
    """Several errors of one request, as a manifest with several missing blobs has; the first one's status counts."""

    def __init__(self, errors: list[RegistryError]) -> None:
        super().__init__(errors[0].code, errors[0].detail, message=errors[0].message)
        self.errors = errors

    def entries(self) -> list[dict[str, Any]]:
        """One entry per error."""
        return [entry for error in self.errors for entry in error.entries()]


class DigestMismatch(ValueError):
    """Content is not what its digest promised. Nothing was stored."""

    def __init__(self, expected: Digest, actual: Digest) -> None:
        super().__init__(f"content has digest {actual}, not {expected}")
        self.expected = expected
        self.actual = actual


class BlobUnknown(LookupError):
    """No such blob in the store."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"blob {digest} unknown to the store")
        self.digest = str(digest)


class ManifestUnknown(LookupError):
    """The repository has no such tag or manifest."""

    def __init__(self, repository: str, reference: str) -> None:
        super().__init__(f"no manifest {reference} in {repository}")
        self.repository = repository
        self.reference = str(reference)


class ManifestInvalid(ValueError):
    """A manifest's bytes do not say what a manifest must."""


class BlobsMissing(LookupError):
    """A manifest refers to content its repository does not hold."""

    def __init__(self, digests: list[str]) -> None:
        super().__init__("content unknown to the repository: " + ", ".join(digests))
        self.digests = digests
