"""Docker's image reference grammar, pure: `[domain/]path[:tag][@digest]`, its defaults and its familiar spelling.

`busybox` means `docker.io/library/busybox:latest`; what users see is the familiar form again. The words of the errors
are docker's, because clients and their tests match on them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from registry.digest import Digest, InvalidDigest

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
_LEGACY_DEFAULT_DOMAIN = "index.docker.io"
_OFFICIAL = "library/"
_NAME_TOTAL_MAX = 255

_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_DOMAIN_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = rf"(?:{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*|\[[a-fA-F0-9:]+\])"
PATH_PATTERN = rf"{_COMPONENT}(?:/{_COMPONENT})*"
TAG_PATTERN = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"

_REFERENCE = re.compile(
    rf"(?P<name>(?:{_HOST}(?::[0-9]+)?/)?{PATH_PATTERN})(?::(?P<tag>{TAG_PATTERN}))?(?:@(?P<digest>{_DIGEST}))?"
)
_PATH_ONLY = re.compile(PATH_PATTERN)
_TAG_ONLY = re.compile(TAG_PATTERN)
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")


class InvalidReference(ValueError):
    """The text is no image reference; the message is docker's."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A checked, normalised reference. `tag` and `digest` may both be absent (a bare repository) or both present."""

    domain: str
    path: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str, default_tag: bool = True) -> Reference:
        """Read what a user wrote. Without tag and digest it gets `latest`, unless `default_tag` is off."""
        if _IDENTIFIER.fullmatch(text):
            raise InvalidReference(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
        domain, remainder = _split_domain(text)
        remote, _, _ = remainder.partition("@")
        name = remote.partition(":")[0]
        if name.lower() != name:
            raise InvalidReference(f"invalid reference format: repository name ({name}) must be lowercase")
        matched = _REFERENCE.fullmatch(f"{domain}/{remainder}")
        if matched is None:
            raise InvalidReference("invalid reference format")
        path = matched["name"][len(domain) + 1 :]
        if len(path) > _NAME_TOTAL_MAX:
            raise InvalidReference(f"repository name must not be more than {_NAME_TOTAL_MAX} characters")
        digest = _digest_of(matched["digest"])
        tag = matched["tag"]
        if tag is None and digest is None and default_tag:
            tag = DEFAULT_TAG
        return cls(domain, path, tag, digest)

    @property
    def name(self) -> str:
        """Domain and path: `docker.io/library/busybox`."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The name as docker shows it: `busybox`, `user/app`, `host:5000/app`."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        if self.path.startswith(_OFFICIAL) and "/" not in self.path[len(_OFFICIAL) :]:
            return self.path[len(_OFFICIAL) :]
        return self.path

    @property
    def familiar(self) -> str:
        """Everything as docker shows it: familiar name, tag, digest."""
        return self.familiar_name + self._suffix()

    @property
    def object_name(self) -> str:
        """What follows `/manifests/` in a registry's URL: the digest when there is one, else the tag."""
        return str(self.digest) if self.digest is not None else (self.tag or DEFAULT_TAG)

    def with_tag(self, tag: str) -> Reference:
        """The same repository with this tag and no digest."""
        if not is_tag(tag):
            raise InvalidReference("invalid tag format")
        return replace(self, tag=tag, digest=None)

    def with_digest(self, digest: Digest) -> Reference:
        """The same repository at this digest, without a tag."""
        return replace(self, tag=None, digest=digest)

    def repository(self) -> Reference:
        """The bare repository."""
        return replace(self, tag=None, digest=None)

    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        return tag + (f"@{self.digest}" if self.digest is not None else "")

    def __str__(self) -> str:
        return self.name + self._suffix()


def _split_domain(text: str) -> tuple[str, str]:
    """Docker's rule for what is a host: it has a dot, a port or an upper-case letter, or it is `localhost`."""
    first, slash, rest = text.partition("/")
    looks_like_host = any(c in first for c in ".:") or first == "localhost" or first.lower() != first
    if slash and looks_like_host:
        domain, remainder = first, rest
    else:
        domain, remainder = DEFAULT_DOMAIN, text
    if domain == _LEGACY_DEFAULT_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in remainder:
        remainder = _OFFICIAL + remainder
    return domain, remainder


def _digest_of(text: str | None) -> Digest | None:
    if text is None:
        return None
    try:
        return Digest.parse(text)
    except InvalidDigest as error:
        # distribution/reference says exactly this for an algorithm it does not know or a wrong length
        words = "unsupported digest algorithm" if "unsupported" in str(error) else "invalid checksum digest length"
        raise InvalidReference(words) from error


def is_repository_path(text: str) -> bool:
    """Whether `text` may name a repository inside a registry (no domain)."""
    return len(text) <= _NAME_TOTAL_MAX and _PATH_ONLY.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Whether `text` may be a tag."""
    return _TAG_ONLY.fullmatch(text) is not None
