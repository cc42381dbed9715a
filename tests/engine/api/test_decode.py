"""Query, body and headers to values, with docker's leniency."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from engine.api.decode import (
    VERSION,
    api_version,
    check_json,
    decode_json,
    json_body,
    query_bool,
    query_filters,
    query_int,
    query_str,
    timestamp_ns,
)
from engine.clock import SECOND
from engine.errors import InvalidParameter


class Body(msgspec.Struct):
    name: str = "default"


def request(query: str = "", content_type: str = "") -> Any:
    headers = {"Content-Type": content_type} if content_type else {}
    return make_mocked_request("GET", f"/x?{query}", headers=headers)


def with_body(raw: bytes, content_type: str = "application/json") -> Any:
    loop = asyncio.get_running_loop()
    stream = StreamReader(BaseProtocol(loop), 2**16, loop=loop)
    stream.feed_data(raw)
    stream.feed_eof()
    headers = {"Content-Type": content_type} if content_type else {}
    return make_mocked_request("POST", "/x", headers=headers, payload=stream)


@pytest.mark.parametrize("text", ["1", "true", "True", "yes", "on", "t", "anything", "2"])
def test_all_else_is_true(text: str) -> None:
    assert query_bool(request(f"all={text}"), "all") is True


@pytest.mark.parametrize("text", ["", "0", "no", "No", "false", "FALSE", "none", "%20"])
def test_false_words(text: str) -> None:
    assert query_bool(request(f"all={text}"), "all", default=True) is False


def test_absent_parameters_have_their_default() -> None:
    assert query_bool(request(), "all") is False
    assert query_bool(request(), "all", default=True) is True
    assert query_str(request(), "name", "x") == "x"
    assert query_str(request("name=a&name=b"), "name") == "a"
    assert query_int(request(), "t") is None
    assert query_int(request("t="), "t", 5) == 5


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("-1", -1), ("%2B7", 7), ("007", 7)])
def test_whole_numbers(text: str, number: int) -> None:
    assert query_int(request(f"t={text}"), "t") == number


@pytest.mark.parametrize("text", ["ten", "1.5", "1_000", "%205", "0x1", "²", "٣"])
def test_what_go_would_not_parse_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match=r"strconv.ParseInt: parsing .*: invalid syntax"):
        query_int(request(f"t={text}"), "t")


def test_filters_are_validated() -> None:
    assert query_filters(request("filters=" + quote('{"name":["a"]}')), {"name"}).get("name") == ("a",)
    with pytest.raises(InvalidParameter, match="invalid filter"):
        query_filters(request("filters=" + quote('{"x":["a"]}')), {"name"})


def test_the_version_is_the_prefix_or_the_newest() -> None:
    asked = request()
    assert api_version(asked) == (1, 51)
    asked[VERSION] = (1, 30)
    assert api_version(asked) == (1, 30)


async def test_a_body_is_decoded() -> None:
    assert await json_body(with_body(b'{"name": "x"}'), Body) == Body("x")
    assert await json_body(with_body(b'{"name": "x"}', "application/json; charset=utf-8"), Body) == Body("x")


async def test_an_empty_body_is_an_error_unless_optional() -> None:
    assert await json_body(with_body(b" \n"), Body, optional=True) == Body("default")
    with pytest.raises(InvalidParameter, match="got EOF while reading request body"):
        await json_body(with_body(b""), Body)


@pytest.mark.parametrize("raw", [b"{", b"[]", b'{"name": 5}', b"null", b'{"name": "\xff"}'])
async def test_a_bad_body_is_the_clients_error(raw: bytes) -> None:
    with pytest.raises(InvalidParameter, match="^invalid JSON: "):
        await json_body(with_body(raw), Body)


async def test_another_content_type_is_refused() -> None:
    for other in ("application/x-tar", "text/plain", ""):
        with pytest.raises(InvalidParameter, match=rf"unsupported Content-Type header \({other}\)"):
            await json_body(with_body(b"{}", other), Body)


def test_check_json_wants_the_header() -> None:
    check_json(request(content_type="Application/JSON; charset=utf-8"))
    for wrong in ("", "text/plain", "application/jsonx"):
        with pytest.raises(InvalidParameter, match="must be 'application/json'"):
            check_json(request(content_type=wrong))


def test_decoding_is_strict() -> None:
    assert decode_json(b'{"name": "x", "other": 1}', Body) == Body("x")
    with pytest.raises(InvalidParameter, match="Expected `str`"):
        decode_json(b'{"name": 1}', Body)


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("", None),
        ("0", 0),
        ("5", 5 * SECOND),
        ("5.25", 5_250_000_000),
        ("5.000000001", 5_000_000_001),
        ("-1.5", -1_500_000_000),
        ("10m", 1000 * SECOND - 600 * SECOND),
        ("1970-01-01T00:00:05Z", 5 * SECOND),
        ("1970-01-02", 86_400 * SECOND),
    ],
)
def test_instants(text: str, instant: int | None) -> None:
    assert timestamp_ns(text, 1000 * SECOND) == instant


@pytest.mark.parametrize("text", ["soon", "5.", "1970-99-01", "1.0000000001", "--5"])
def test_what_is_no_instant_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid value for timestamp"):
        timestamp_ns(text, 0)
