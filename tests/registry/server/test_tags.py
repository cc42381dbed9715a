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
