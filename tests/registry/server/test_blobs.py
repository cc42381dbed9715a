import os

import pytest

from registry.digest import Digest
from registry.errors import RegistryError
from registry.server.blobs import parse_range

from .conftest import Client


@pytest.mark.parametrize(
    ("header", "span"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=2-", (2, 8)),
        ("bytes=2-4", (2, 3)),
        ("bytes=5-100", (5, 5)),
        ("bytes=-3", (7, 3)),
        ("bytes=-100", (0, 10)),
        ("bytes=0-1,3-4", None),
        ("items=0-1", None),
    ],
)
def test_ranges_of_ten_bytes(header: str, span: tuple[int, int] | None) -> None:
    assert parse_range(header, 10) == span


@pytest.mark.parametrize(
    "header", ["bytes=10-", "bytes=4-2", "bytes=-0", "bytes=-", "bytes=a-b", "bytes=--1", "bytes=" + "9" * 30 + "-"]
)
def test_ranges_that_cannot_be_satisfied(header: str) -> None:
    with pytest.raises(RegistryError) as caught:
        parse_range(header, 10)
    assert caught.value.status == 416 and caught.value.headers["Content-Range"] == "bytes */10"


@pytest.mark.parametrize("size", [0, 1000, 65_536, 65_537, 3_000_001])
async def test_a_blob_comes_back_as_it_was(client: Client, size: int) -> None:
    data = os.urandom(size)
    digest = await client.push_blob("a/b", data)
    answer = await client.call("GET", f"/v2/a/b/blobs/{digest}")
    assert (answer.status, answer.body) == (200, data)
    assert answer.headers["Docker-Content-Digest"] == digest and answer.headers["ETag"] == f'"{digest}"'
    head = await client.call("HEAD", f"/v2/a/b/blobs/{digest}")
    assert head.headers["Content-Length"] == str(size) and head.body == b""


async def test_parts_of_a_blob(client: Client) -> None:
    data = os.urandom(2_000_000)
    digest = await client.push_blob("a", data)
    url = f"/v2/a/blobs/{digest}"
    answer = await client.call("GET", url, headers={"Range": "bytes=5-1999990"})
    assert (answer.status, answer.body) == (206, data[5:1999991])
    assert answer.headers["Content-Range"] == "bytes 5-1999990/2000000"
    assert (await client.call("GET", url, headers={"Range": "bytes=5-", "If-Range": '"other"'})).status == 200
    answer = await client.call("GET", url, headers={"Range": "bytes=2000000-"})
    assert answer.status == 416 and answer.headers["Content-Range"] == "bytes */2000000"
    assert (await client.call("GET", url, headers={"If-None-Match": f'"{digest}"'})).status == 304


async def test_blobs_are_served_by_linking_repositories_only(client: Client) -> None:
    digest = await client.push_blob("mine", b"secret")
    for method in ("GET", "HEAD", "DELETE"):
        assert (await client.call(method, f"/v2/theirs/blobs/{digest}")).status == 404
    answer = await client.call("GET", "/v2/mine/blobs/sha256:nonsense")
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")


async def test_a_deleted_blob_is_gone_from_its_repository(client: Client) -> None:
    digest = await client.push_blob("a", b"x")
    await client.call("POST", f"/v2/b/blobs/uploads/?mount={digest}&from=a")
    assert (await client.call("DELETE", f"/v2/a/blobs/{digest}")).status == 202
    assert (await client.call("GET", f"/v2/a/blobs/{digest}")).code == "BLOB_UNKNOWN"
    assert (await client.call("GET", f"/v2/b/blobs/{digest}")).body == b"x"


async def test_several_requests_share_a_connection(client: Client) -> None:
    digest = await client.push_blob("a", os.urandom(300_000))
    for _ in range(3):
        assert len((await client.call("GET", f"/v2/a/blobs/{digest}")).body) == 300_000
    assert Digest.parse(digest) == digest
