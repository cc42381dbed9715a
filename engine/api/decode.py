"""Query, body and headers of a request to typed values, with dockerd's leniency and its words for what is wrong."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TypeVar

import msgspec
from aiohttp import web

from engine import API_VERSION
from engine.clock import instant_ns
from engine.containers.loose import decode_loose
from engine.containers.syntax import syntax_words
from engine.errors import InvalidParameter
from engine.filters import Filters
from registry.manifest import Platform

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)

VERSION = web.RequestKey("api_version", tuple)


_SYSTEMS = frozenset(
    "aix android darwin dragonfly freebsd illumos ios js linux netbsd openbsd plan9 solaris wasip1 windows".split()
)
_MACHINES = frozenset(
    "386 amd64 arm arm64 loong64 mips mips64 mips64le mipsle ppc64 ppc64le riscv64 s390x sparc64 wasm".split()
)
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "i386": ("386", ""),
}


def api_version(request: web.Request) -> tuple[int, int]:
    """The API version this request speaks: its path prefix, or the newest."""
    version: tuple[int, int] = request.get(VERSION, API_VERSION)
    return version


def query_bool(request: web.Request, name: str, default: bool = False) -> bool:
    """Docker's loose boolean: absent is the default; ``""``, ``0``, ``no``, ``false``, ``none`` are false; all else
    is true."""
    value = request.query.get(name)
    if value is None:
        return default
    return value.strip().lower() not in ("", "0", "no", "false", "none")


def query_str(request: web.Request, name: str, default: str = "") -> str:
    """A text parameter; the first value counts."""
    return request.query.get(name, default)


def query_int(request: web.Request, name: str, default: int | None = None) -> int | None:
    """A whole number, or ``default`` when absent or empty. Raises ``InvalidParameter``."""
    value = request.query.get(name, "")
    if value == "":
        return default
    if not re.fullmatch(r"[+-]?[0-9]+", value):
        raise InvalidParameter(f'strconv.ParseInt: parsing "{value}": invalid syntax')
    return int(value)


def query_filters(request: web.Request, allowed: Collection[str] | None) -> Filters:
    """The ``filters`` parameter; keys outside ``allowed`` are refused, where it is given."""
    return Filters.parse(request.query.get("filters"), allowed)


async def json_body(request: web.Request, kind: type[T], *, optional: bool = False) -> T:
    """Decode the JSON body. Raises ``InvalidParameter`` for another content type, bad JSON, or a wrong type.

    With ``optional`` an empty body is ``kind()``.
    """
    raw = await request.read()
    if not raw.strip():
        if optional:
            return kind()
        raise InvalidParameter("invalid JSON: got EOF while reading request body")
    check_json(request)
    return decode_json(raw, kind)


async def loose_body(request: web.Request, kind: type[S], *, optional: bool = False) -> S:
    """The JSON body by Go's rules. Raises ``InvalidParameter`` for another content type, bad JSON, or a wrong type.

    With ``optional`` an empty body is ``kind()``, whatever its type is said to be.
    """
    raw = await request.read()
    if optional and not raw:
        return kind()
    check_json(request)
    try:
        return decode_loose(kind, raw)
    except ValueError as error:
        raise InvalidParameter(str(error)) from error


def check_json(request: web.Request) -> None:
    """Refuse a body of another content type. Raises ``InvalidParameter`` with dockerd's sentence."""
    content_type = request.headers.get("Content-Type", "")
    if not re.match(r"application/json\b", content_type, re.IGNORECASE):
        raise InvalidParameter(f"unsupported Content-Type header ({content_type}): must be 'application/json'")


def decode_json(raw: bytes, kind: type[T]) -> T:
    """Decode one JSON document into ``kind``; the error is a sentence for the client."""
    try:
        return msgspec.json.decode(raw, type=kind, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidParameter(syntax_words(raw) or f"invalid JSON: {error}") from error


def parse_platform(text: str) -> Platform | None:
    """``os[/arch[/variant]]`` (or only an architecture); None for nothing. Raises ``InvalidParameter``."""
    if not text:
        return None
    parts = text.lower().split("/")
    if len(parts) > 3:
        raise InvalidParameter(f'"{text}": invalid platform specifier')
    for place, part in enumerate(parts):
        if not re.fullmatch(r"[a-z0-9_.-]+", part):
            kind = "an invalid component" if place else "an invalid OS component"
            raise InvalidParameter(f'"{part}" is {kind} of "{text}": invalid argument')
    if parts[0] == "macos":
        parts[0] = "darwin"
    if len(parts) == 1 and parts[0] not in _SYSTEMS:
        if parts[0] not in _MACHINES | _ARCHITECTURES.keys():
            raise InvalidParameter(f'"{text}": unknown operating system or architecture: invalid argument')
        parts = ["linux", *parts]
    given = parts[1] if len(parts) > 1 else ""
    architecture, variant = _ARCHITECTURES.get(given, (given, ""))
    return Platform(os=parts[0], architecture=architecture, variant=parts[2] if len(parts) > 2 else variant)


def timestamp_ns(value: str, now_ns: int) -> int | None:
    """``since`` and ``until``: an instant (``clock.instant_ns``), seconds before 1970 among them. None for empty.

    Raises ``InvalidParameter`` for anything else.
    """
    if not value:
        return None
    try:
        if re.fullmatch(r"-[0-9]+(\.[0-9]{1,9})?", value):
            return -instant_ns(value[1:], now_ns)
        return instant_ns(value, now_ns)
    except ValueError as error:
        raise InvalidParameter(f'invalid value for timestamp: "{value}"') from error
