import json
from typing import Any

import pytest

from registry.digest import Digest
from registry.manifest import DOCKER_SCHEMA1_SIGNED, MAX_MANIFEST_BYTES, OCI_INDEX, OCI_MANIFEST
from registry.store import paths

from .conftest import Answer, Client, Start


async def put(client: Client, path: str, document: Any, media_type: str = OCI_MANIFEST) -> Answer:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return await client.call("PUT", path, data=data, headers={"Content-Type": media_type})


async def test_by_tag_and_by_digest(client: Client) -> None:
    digest = await client.push_image("a", "v1")
    by_tag = await client.call("GET", "/v2/a/manifests/v1")
    by_digest = await client.call("GET", f"/v2/a/manifests/{digest}")
    assert by_tag.body == by_digest.body and Digest.of(by_tag.body) == digest
    assert by_tag.headers["Content-Type"] == OCI_MANIFEST
    head = await client.call("HEAD", "/v2/a/manifests/v1")
    assert head.headers["Content-Length"] == str(len(by_tag.body)) and head.body == b""
    for tag in (f'"{digest}"', str(digest), f'W/"{digest}"'):
        assert (await client.call("GET", "/v2/a/manifests/v1", headers={"If-None-Match": tag})).status == 304


async def test_a_new_push_is_seen_at_once(client: Client) -> None:
    await client.push_image("a", "latest", b"one")
    first = await client.call("GET", "/v2/a/manifests/latest")
    await client.push_image("a", "latest", b"two")
    second = await client.call("GET", "/v2/a/manifests/latest")
    assert first.body != second.body


async def test_missing_content_is_named(client: Client) -> None:
    missing = [str(Digest.of(name)) for name in (b"config", b"layer")]
    document = {
        "schemaVersion": 2,
        "config": {"digest": missing[0], "size": 1, "mediaType": "x/y"},
        "layers": [{"digest": missing[1], "size": 1, "mediaType": "x/y"}],
    }
    answer = await put(client, "/v2/a/manifests/v1", document)
    assert answer.status == 400
    assert [(e["code"], e["detail"]) for e in answer.json["errors"]] == [("MANIFEST_BLOB_UNKNOWN", d) for d in missing]
    assert (await client.call("GET", "/v2/a/manifests/v1")).code == "MANIFEST_UNKNOWN"


@pytest.mark.parametrize(
    ("data", "media_type", "status"),
    [
        (b"", OCI_MANIFEST, 400),
        (b"{}", OCI_MANIFEST, 400),
        (b"\x00\xff", OCI_MANIFEST, 400),
        (b'{"schemaVersion":1}', DOCKER_SCHEMA1_SIGNED, 400),
        (b" " * (4 * 1024 * 1024 + 1), OCI_MANIFEST, 413),
    ],
)
async def test_bad_documents(client: Client, data: bytes, media_type: str, status: int) -> None:
    answer = await put(client, "/v2/a/manifests/v1", data, media_type)
    assert (answer.status, answer.code) == (status, "MANIFEST_INVALID")


async def test_bad_references(client: Client) -> None:
    digest = await client.push_image("a", "v1")
    body = (await client.call("GET", "/v2/a/manifests/v1")).body
    assert (await put(client, f"/v2/a/manifests/{Digest.of(b'other')}", body)).code == "DIGEST_INVALID"
    assert (await client.call("GET", "/v2/a/manifests/sha256:short")).code == "DIGEST_INVALID"
    assert (await client.call("GET", f"/v2/other/manifests/{digest}")).code == "MANIFEST_UNKNOWN"


async def test_tags_can_be_given_beside_a_digest(client: Client) -> None:
    digest = await client.push_image("a", "v1")
    body = (await client.call("GET", "/v2/a/manifests/v1")).body
    answer = await put(client, f"/v2/a/manifests/{digest}?tag=x&tag=y", body)
    assert answer.status == 201 and answer.headers["OCI-Tag"] == "x, y"
    assert (await client.call("GET", "/v2/a/tags/list")).json["tags"] == ["v1", "x", "y"]
    assert (await put(client, f"/v2/a/manifests/{digest}?tag=../x", body)).code == "TAG_INVALID"


async def test_deleting(client: Client) -> None:
    digest = await client.push_image("a", "v1")
    await put(client, "/v2/a/manifests/v2", (await client.call("GET", "/v2/a/manifests/v1")).body)
    assert (await client.call("DELETE", "/v2/a/manifests/v1")).status == 202
    assert (await client.call("DELETE", "/v2/a/manifests/v1")).status == 404
    assert (await client.call("GET", f"/v2/a/manifests/{digest}")).status == 200
    assert (await client.call("DELETE", f"/v2/a/manifests/{digest}")).status == 202
    assert (await client.call("GET", "/v2/a/manifests/v2")).status == 404
    assert (await client.call("GET", f"/v2/a/manifests/{digest}")).status == 404


async def test_immutable_tags_stay(start: Start) -> None:
    client = await start(immutable_tags=("rel/*:v*",))
    digest = await client.push_image("rel/app", "v1")
    await client.push_image("rel/app", "v1")
    await client.push_image("rel/app", "edge")
    await client.push_image("rel/app", "edge", b"other")
    body = (await client.call("GET", "/v2/rel/app/manifests/edge")).body
    assert (await put(client, "/v2/rel/app/manifests/v1", body)).code == "DENIED"
    assert (await client.call("DELETE", "/v2/rel/app/manifests/v1")).code == "DENIED"
    assert (await client.call("DELETE", f"/v2/rel/app/manifests/{digest}")).code == "DENIED"
    assert (await client.call("DELETE", "/v2/rel/app/manifests/edge")).status == 202
    await client.push_image("rel/app", "v2", b"damaged")
    link = client.server.blobs.driver.local_path(paths.tag_current("rel/app", "v2"))
    assert link is not None
    link.write_bytes(b"")
    other = await client.push_image("rel/app", "other", b"third")
    assert (await client.call("DELETE", f"/v2/rel/app/manifests/{other}")).status == 202
    await client.push_image("rel/app", "v2", b"pushed again")


async def test_addresses_in_layers_follow_policy(start: Start) -> None:
    client = await start(url_allow=("^https://good/",), url_deny=("secret",))
    config = await client.push_blob("a", b"{}")
    for url, status in (
        ("https://good/l", 201),
        ("https://bad/l", 400),
        ("https://good/secret", 400),
        ("ftp://x", 400),
    ):
        layer = {"digest": str(Digest.of(b"l")), "size": 1, "mediaType": "x/y", "urls": [url]}
        config_entry = {"digest": str(config), "size": 2, "mediaType": "x/y"}
        document = {"schemaVersion": 2, "config": config_entry, "layers": [layer]}
        assert (await put(client, "/v2/a/manifests/x", document)).status == status


def artifact(kind: str, subject: Digest, **annotations: str) -> dict[str, Any]:
    """Its config is `{}`."""
    return {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": kind,
        "config": {"digest": str(Digest.of(b"{}")), "size": 2, "mediaType": "application/vnd.oci.empty.v1+json"},
        "layers": [],
        "subject": {"digest": str(subject), "size": 1, "mediaType": OCI_MANIFEST},
        "annotations": {"kind": kind, **annotations},
    }


async def test_referrers(client: Client) -> None:
    subject = await client.push_image("a", "v1")
    for kind in ("a/sbom", "a/sig"):
        answer = await put(client, f"/v2/a/manifests/{kind[2:]}", artifact(kind, subject))
        assert answer.headers["OCI-Subject"] == subject
    answer = await client.call("GET", f"/v2/a/referrers/{subject}")
    assert answer.headers["Content-Type"] == OCI_INDEX
    assert {item["artifactType"] for item in answer.json["manifests"]} == {"a/sbom", "a/sig"}
    answer = await client.call("GET", f"/v2/a/referrers/{subject}?artifactType=a/sig")
    assert answer.headers["OCI-Filters-Applied"] == "artifactType"
    assert [item["annotations"] for item in answer.json["manifests"]] == [{"kind": "a/sig"}]
    await client.call("DELETE", f"/v2/a/manifests/{answer.json['manifests'][0]['digest']}")
    assert len((await client.call("GET", f"/v2/a/referrers/{subject}")).json["manifests"]) == 1
    assert (await client.call("GET", f"/v2/b/referrers/{subject}")).json["manifests"] == []
    assert (await client.call("GET", "/v2/a/referrers/nonsense")).code == "DIGEST_INVALID"


async def follow(client: Client, path: str) -> list[Any]:
    """Every page of a list of referrers."""
    pages = []
    while path:
        answer = await client.call("GET", path)
        pages.append(answer)
        link = answer.headers.get("Link", "")
        assert not link or link.endswith('>; rel="next"')
        path = link.partition(">")[0].removeprefix("<")
    return pages


async def test_pages_of_referrers(client: Client) -> None:
    subject = await client.push_image("a", "v1")
    for number in range(5):
        await put(client, f"/v2/a/manifests/r{number}", artifact("a/sig+x" if number else "a/other", subject))
        await put(client, f"/v2/a/manifests/s{number}", artifact("a/sig+x", subject, number=str(number)))
    url = f"/v2/a/referrers/{subject}"
    every = [item["digest"] for item in (await client.call("GET", url)).json["manifests"]]
    for size in (1, 3, 7, 100):
        pages = await follow(client, f"{url}?n={size}")
        assert [item["digest"] for page in pages for item in page.json["manifests"]] == every
        assert len(pages) == -(-len(every) // size)
    pages = await follow(client, f"{url}?artifactType=a%2Fsig%2Bx&n=2")
    assert all(page.headers["OCI-Filters-Applied"] == "artifactType" for page in pages)
    assert sum(len(page.json["manifests"]) for page in pages) == len(every) - 1
    assert [page.json["manifests"] for page in await follow(client, f"{url}?n=0")] == [[]]
    assert (await client.call("GET", f"{url}?n=x")).code == "PAGINATION_NUMBER_INVALID"


async def test_referrers_come_in_pages_that_clients_read(client: Client) -> None:
    subject = await client.push_image("a", "v1")
    for number in range(5):
        answer = await put(client, f"/v2/a/manifests/r{number}", artifact("a/b", subject, text=str(number) * 1_000_000))
        assert answer.status == 201
    pages = await follow(client, f"/v2/a/referrers/{subject}")
    assert [len(page.json["manifests"]) for page in pages] == [4, 1]
    assert all(len(page.body) <= MAX_MANIFEST_BYTES for page in pages)


async def test_warnings_reach_the_clients_of_the_repositories_they_are_for(start: Start) -> None:
    client = await start(warnings={"old/**": 'moved to "new"', "old/app": "until June"})
    await client.push_image("old/app", "v1")
    await client.push_image("new/app", "v1")
    answer = await client.call("HEAD", "/v2/old/app/manifests/v1")
    # One header each: oras and regctl read no second warning from one.
    assert answer.headers.getall("Warning") == ['299 - "moved to \\"new\\""', '299 - "until June"']
    assert "Warning" not in (await client.call("GET", "/v2/new/app/manifests/v1")).headers


async def test_warnings_are_no_longer_than_oci_allows(start: Start) -> None:
    client = await start(warnings={"*" * number: "w" * 200 for number in range(1, 30)})
    await client.push_image("app", "v1")
    headers = (await client.call("GET", "/v2/app/manifests/v1")).headers
    assert len(headers.getall("Warning")) == 4096 // 200


async def test_a_condition_that_does_not_hold_is_refused(client: Client) -> None:
    digest = await client.push_image("a", "v1", b"layer")
    layer, other = Digest.of(b"layer"), Digest.of(b"other")
    for path, it in (("manifests/v1", digest), (f"manifests/{digest}", digest), (f"blobs/{layer}", layer)):
        for method in ("GET", "HEAD"):
            for value, status in (
                (f'"{it}"', 200),
                ("*", 200),
                (f'"{other}", "{it}"', 200),
                (f'"{other}"', 412),
                (f'W/"{it}"', 412),
            ):
                answer = await client.call(method, f"/v2/a/{path}", headers={"If-Match": value})
                assert answer.status == status, (method, path, value)


async def test_embedded_data_must_be_what_its_descriptor_says(client: Client) -> None:
    config = await client.push_blob("a", b"{}")

    async def push(data: str, size: int = 2) -> int:
        document = {"schemaVersion": 2, "config": {"digest": str(config), "size": size, "data": data}, "layers": []}
        headers = {"Content-Type": OCI_MANIFEST}
        return (await client.call("PUT", "/v2/a/manifests/x", data=json.dumps(document), headers=headers)).status

    assert await push("e30=") == 201
    assert await push("fX0=") == 400
    assert await push("e30=", size=3) == 400
    assert await push("%%%") == 400
