import asyncio

import pytest

from .conftest import Client, Start


async def test_pages_of_tags(client: Client) -> None:
    for tag in ("c", "a", "b", "B"):
        await client.push_image("r", tag)
    assert (await client.call("GET", "/v2/r/tags/list")).json == {"name": "r", "tags": ["B", "a", "b", "c"]}
    answer = await client.call("GET", "/v2/r/tags/list?n=2")
    assert answer.json["tags"] == ["B", "a"]
    assert answer.headers["Link"] == '</v2/r/tags/list?last=a&n=2>; rel="next"'
    answer = await client.call("GET", "/v2/r/tags/list?n=2&last=a")
    assert answer.json["tags"] == ["b", "c"] and "Link" not in answer.headers
    assert (await client.call("GET", "/v2/r/tags/list?n=0")).json["tags"] == []
    assert (await client.call("GET", "/v2/none/tags/list")).code == "NAME_UNKNOWN"


@pytest.mark.parametrize("n", ["-1", "x", "1.5", "٣", "9" * 50])
@pytest.mark.parametrize("path", ["/v2/r/tags/list", "/v2/_catalog"])
async def test_what_is_no_page_size(client: Client, path: str, n: str) -> None:
    await client.push_image("r", "t")
    answer = await client.call("GET", path, params={"n": n})
    assert (answer.status, answer.code) == (400, "PAGINATION_NUMBER_INVALID")


async def test_the_catalog(start: Start) -> None:
    client = await start(catalog_max_entries=10)
    for name in ("b", "a-b", "a/b", "a"):
        await client.push_image(name, "t")
    await client.push_blob("blobs-only", b"x")
    assert (await client.call("GET", "/v2/_catalog")).json == {"repositories": ["a", "a/b", "a-b", "b"]}
    answer = await client.call("GET", "/v2/_catalog?n=2")
    assert answer.json["repositories"] == ["a", "a/b"] and "last=a%2Fb" in answer.headers["Link"]
    assert (await client.call("GET", "/v2/_catalog?n=2&last=a/b")).json["repositories"] == ["a-b", "b"]
    assert (await client.call("GET", "/v2/_catalog?n=11")).status == 400


async def test_a_slow_walk_delays_nobody_and_hides_no_push(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    await client.push_image("b", "t")
    assert (await client.call("GET", "/v2/_catalog")).json["repositories"] == ["b"]
    lists = client.server._lists
    original, may_end = client.server.repositories.names, asyncio.Event()

    async def slow(marker: str = "_manifests") -> list[str]:
        names = await original(marker)
        await may_end.wait()
        return names

    monkeypatch.setattr(client.server.repositories, "names", slow)
    lists._catalog_read = 0.0
    assert (await client.call("GET", "/v2/_catalog")).json["repositories"] == ["b"]
    await client.push_image("a", "t")
    assert (await client.call("GET", "/v2/_catalog")).json["repositories"] == ["a", "b"]
    may_end.set()
    assert lists._walk is not None
    await lists._walk
    assert (await client.call("GET", "/v2/_catalog")).json["repositories"] == ["a", "b"]
