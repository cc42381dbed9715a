"""Go's way of reading JSON into settings: key case does not matter, ``null`` means absent, unknown keys are ignored,
a command may be text or a list. Docker's clients lean on every one of these. Wrong types are refused in Go's words.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import msgspec

from engine.containers.syntax import syntax_words

S = TypeVar("S", bound=msgspec.Struct)

_TEXT_OR_LIST = frozenset({"Cmd", "Entrypoint"})
_GO_TYPES = {str: "string", int: "int64", bool: "bool", float: "float64"}
_JSON_KINDS = ((bool, "bool"), (str, "string"), (int, "number"), (float, "number"), (dict, "object"), (list, "array"))


def decode_loose(kind: type[S], raw: bytes) -> S:
    """One JSON document to ``kind``. Raises ``ValueError`` with dockerd's sentence (``invalid JSON: …``)."""
    return convert_loose(kind, parse_object(raw))


def parse_object(raw: bytes) -> dict[str, Any]:
    """The document as a dictionary. Raises ``ValueError`` with dockerd's sentence when it is not one JSON object."""
    if not raw.strip():
        raise ValueError("invalid JSON: got EOF while reading request body")
    try:
        document = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(syntax_words(raw) or f"invalid JSON: {error}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ValueError(f"invalid JSON: json: cannot unmarshal {_json_kind(document)} into Go value of type object")
    return document


def convert_loose(kind: type[S], document: Mapping[str, Any]) -> S:
    """A decoded document to ``kind``, with the same rules and errors as ``decode_loose``."""
    return cast(S, _to_struct(kind, document, kind.__name__))


def names_any(kind: type[msgspec.Struct], document: Mapping[str, Any]) -> bool:
    """Whether any of the document's keys is a field of ``kind``."""
    return not _fields(kind).keys().isdisjoint(key.lower() for key in document)


@functools.cache
def _fields(kind: type[msgspec.Struct]) -> dict[str, tuple[str, str, object]]:
    hints = typing.get_type_hints(kind)
    return {f.encode_name.lower(): (f.name, f.encode_name, hints[f.name]) for f in msgspec.structs.fields(kind)}


def _to_struct(kind: type[msgspec.Struct], document: object, path: str) -> msgspec.Struct:
    if not isinstance(document, dict):
        raise mismatch(document, path, kind.__name__)
    fields = _fields(kind)
    values: dict[str, object] = {}
    for key, value in document.items():
        known = fields.get(key.lower())
        if known is None or value is None:
            continue
        name, wire_name, hint = known
        if wire_name in _TEXT_OR_LIST and isinstance(value, str):
            value = [value]
        values[name] = _to(hint, value, f"{path}.{wire_name}")
    return kind(**values)


def _to(hint: object, value: object, path: str) -> object:
    if hint is Any:
        return value
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _to(next(a for a in typing.get_args(hint) if a is not types.NoneType), value, path)
    if origin is tuple:
        return _to_tuple(typing.get_args(hint), value, path)
    if origin is dict:
        if not isinstance(value, dict):
            raise mismatch(value, path, "map")
        element = typing.get_args(hint)[1]
        return {key: _to_element(element, item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return _to_struct(hint, value, path)
    return _to_scalar(cast(type, hint), value, path)


def _to_tuple(args: tuple[object, ...], value: object, path: str) -> tuple[object, ...]:
    if not isinstance(value, list):
        raise mismatch(value, path, "array")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_to_element(args[0], item, path) for item in value)
    # A Go array of fixed length: what is missing is zero, what is too much is dropped.
    padded = [*value, *[0] * len(args)][: len(args)]
    return tuple(_to(hint, item, path) for hint, item in zip(args, padded, strict=True))


def _to_element(hint: object, value: object, path: str) -> object:
    """An element of a list or map: ``null`` there is Go's zero value, not absence."""
    if value is not None:
        return _to(hint, value, path)
    if types.NoneType in typing.get_args(hint):
        return None
    zero = typing.get_origin(hint) or hint
    return zero() if isinstance(zero, type) else None


def _to_scalar(hint: type, value: object, path: str) -> object:
    if type(value) is hint:
        if hint is int and not -(2**63) <= cast(int, value) < 2**63:
            raise mismatch(value, path, "int64")
        return value
    raise mismatch(value, path, _GO_TYPES[hint])


def _json_kind(value: object) -> str:
    return next((name for kind, name in _JSON_KINDS if isinstance(value, kind)), "value")


def mismatch(value: object, path: str, wanted: str) -> ValueError:
    """Go's sentence for a value of the wrong type at ``path``."""
    kind = _json_kind(value)
    return ValueError(f"invalid JSON: json: cannot unmarshal {kind} into Go struct field {path} of type {wanted}")
