"""A digest names content by its hash; this module is the only place that parses, compares and computes one.

`Digest` is a `str`, so it can be a dictionary key, a path part or a header as it is. Encode it with `str(digest)`
where an exact string is demanded (msgspec refuses subclasses).
"""

from __future__ import annotations

import hashlib
import re
from typing import Protocol

_ENCODED_LENGTH = {"sha256": 64, "sha512": 128}
_KNOWN = re.compile("|".join(f"{name}:[0-9a-f]{{{length}}}" for name, length in _ENCODED_LENGTH.items()))
_GRAMMAR = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")


class InvalidDigest(ValueError):
    """The text is no digest this store can keep: bad grammar, unknown algorithm, or wrong length."""


class Hasher(Protocol):
    """What `hashlib` objects promise and this project uses."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...
    def copy(self) -> Hasher: ...


class Digest(str):
    """`algorithm:encoded`, checked: sha256 or sha512 with lower-case hexadecimal of the right length."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Digest:
        """The digest written in `text`; `InvalidDigest` otherwise."""
        if isinstance(text, Digest):
            return text
        if _KNOWN.fullmatch(text):
            return cls(text)
        if not _GRAMMAR.fullmatch(text):
            raise InvalidDigest(f"invalid checksum digest format: {text[:200]!r}")
        algorithm = text.partition(":")[0]
        if algorithm not in _ENCODED_LENGTH:
            raise InvalidDigest(f"unsupported digest algorithm: {algorithm}")
        raise InvalidDigest(f"invalid checksum digest length: {text[:200]!r}")

    @classmethod
    def of(cls, data: bytes | memoryview, algorithm: str = "sha256") -> Digest:
        """The digest of `data`. Hash more than a few KiB in a thread."""
        return cls(f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")

    @classmethod
    def of_hasher(cls, hasher: Hasher, algorithm: str = "sha256") -> Digest:
        """The digest a finished hasher stands for."""
        return cls(f"{algorithm}:{hasher.hexdigest()}")

    @property
    def algorithm(self) -> str:
        """`sha256` or `sha512`."""
        return self.partition(":")[0]

    @property
    def encoded(self) -> str:
        """The hexadecimal part."""
        return self.partition(":")[2]


def new_hasher(algorithm: str = "sha256") -> Hasher:
    """A fresh hasher; it releases the interpreter lock for large updates, so it may run in a thread."""
    if algorithm not in _ENCODED_LENGTH:
        raise InvalidDigest(f"unsupported digest algorithm: {algorithm}")
    return hashlib.new(algorithm)


class Verifier:
    """Feeds a hasher of the expected digest's algorithm and says whether the content was what was promised."""

    __slots__ = ("_hasher", "expected")

    def __init__(self, expected: Digest) -> None:
        self.expected = expected
        self._hasher = new_hasher(expected.algorithm)

    def update(self, data: bytes | memoryview) -> None:
        """Add the next bytes."""
        self._hasher.update(data)

    @property
    def actual(self) -> Digest:
        """The digest of what was fed so far."""
        return Digest.of_hasher(self._hasher, self.expected.algorithm)

    def verified(self) -> bool:
        """Whether the bytes so far are exactly the expected content."""
        return self.actual == self.expected


EMPTY_SHA256 = Digest.of(b"")
