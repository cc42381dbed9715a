import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from registry.digest import Digest
from registry.store.growing import GrowingFile

from .conftest import Client, Start


async def begin(client: Client, repository: str = "a") -> str:
    answer = await client.call("POST", f"/v2/{repository}/blobs/uploads/")
    assert answer.status == 202 and answer.headers["Range"] == "0-0"
    return str(answer.headers["Location"])


async def test_chunks_in_order_make_a_blob(client: Client) -> None:
    data = os.urandom(500_000)
    url = await begin(client)
    answer = await client.call("PATCH", url, data=data[:200_000], headers={"Content-Range": "0-199999"})
    assert answer.status == 202 and answer.headers["Range"] == "0-199999"
    status = await client.call("GET", answer.headers["Location"])
    assert status.status == 204 and status.headers["Range"] == "0-199999"
    answer = await client.call("PATCH", answer.headers["Location"], data=data[200_000:400_000])
    digest = Digest.of(data)
    answer = await client.call("PUT", f"{answer.headers['Location']}?digest={digest}", data=data[400_000:])
    assert answer.status == 201 and answer.headers["Docker-Content-Digest"] == digest
    assert (await client.call("GET", answer.headers["Location"])).body == data


async def test_chunks_out_of_order_are_refused_with_the_place_to_go_on(client: Client) -> None:
    url = await begin(client)
    answer = await client.call("PATCH", url, data=b"xx", headers={"Content-Range": "5-6"})
    assert (answer.status, answer.code) == (416, "RANGE_INVALID")
    await client.call("PATCH", url, data=b"12345", headers={"Content-Range": "0-4"})
    for method, suffix in (("PATCH", ""), ("PUT", f"?digest={Digest.of(b'12345xx')}")):
        answer = await client.call(method, url + suffix, data=b"xx", headers={"Content-Range": "6-7"})
        assert answer.status == 416 and answer.headers["Range"] == "0-4"
    answer = await client.call("PATCH", url, data=b"xx", headers={"Content-Range": "5-9"})
    assert (answer.status, answer.code) == (400, "SIZE_INVALID")
    for header in ("nonsense", "-1-2", "5-" + "9" * 40):
        assert (await client.call("PATCH", url, data=b"xx", headers={"Content-Range": header})).status == 416


async def test_a_wrong_or_missing_digest(client: Client) -> None:
    url = await begin(client)
    await client.call("PATCH", url, data=b"data")
    assert (await client.call("PUT", url)).code == "DIGEST_INVALID"
    assert (await client.call("PUT", f"{url}?digest=nonsense")).code == "DIGEST_INVALID"
    assert (await client.call("PUT", f"{url}?digest={Digest.of(b'other')}")).code == "DIGEST_INVALID"
    assert (await client.call("GET", url)).code == "BLOB_UPLOAD_UNKNOWN"


async def test_cancelling_frees_everything(client: Client, tmp_path: Path) -> None:
    url = await begin(client)
    await client.call("PATCH", url, data=b"x" * 1000)
    assert (await client.call("DELETE", url)).status == 204
    assert (await client.call("PATCH", url, data=b"y")).status == 404
    assert list((tmp_path / "root" / "docker").rglob("data")) == []


async def test_mounting(client: Client) -> None:
    digest = await client.push_blob("a", b"shared")
    answer = await client.call("POST", f"/v2/b/blobs/uploads/?mount={digest}&from=a")
    assert answer.status == 201 and (await client.call("GET", answer.headers["Location"])).body == b"shared"
    missing = Digest.of(b"missing")
    assert (await client.call("POST", f"/v2/b/blobs/uploads/?mount={missing}&from=a")).status == 202
    # Without a source any repository will do that had it lately.
    assert (await client.call("POST", f"/v2/c/blobs/uploads/?mount={missing}")).status == 202
    assert (await client.call("POST", f"/v2/c/blobs/uploads/?mount={digest}")).status == 201
    assert (await client.call("GET", f"/v2/c/blobs/{digest}")).status == 200
    assert (await client.call("POST", f"/v2/a/blobs/uploads/?mount={digest}")).status == 201
    assert (await client.call("POST", "/v2/b/blobs/uploads/?mount=nonsense&from=a")).code == "DIGEST_INVALID"


async def test_sha512_keeps_its_name(client: Client) -> None:
    digest = Digest.of(b"data", "sha512")
    answer = await client.call("POST", f"/v2/a/blobs/uploads/?digest={digest}", data=b"data")
    assert answer.status == 201 and answer.headers["Docker-Content-Digest"] == digest
    assert (await client.call("GET", f"/v2/a/blobs/{digest}")).body == b"data"
    assert (await client.call("POST", "/v2/a/blobs/uploads/?digest-algorithm=md5")).code == "DIGEST_INVALID"


async def raw(client: Client, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(request)
    await writer.drain()
    return reader, writer


async def test_what_arrived_before_a_cut_can_be_resumed_even_after_a_restart(start: Start) -> None:
    client = await start()
    data = os.urandom(600_000)
    path = (await begin(client)).removeprefix(client.base)
    head = f"PATCH {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    _, writer = await raw(client, head + data[:400_000])
    writer.close()
    await writer.wait_closed()
    async with asyncio.timeout(5):
        while (await client.call("GET", path)).headers["Range"] == "0-0":
            await asyncio.sleep(0)
    await client.server.stop()
    client = await start()
    answer = await client.call("GET", path)
    offset = int(answer.headers["Range"].partition("-")[2]) + 1
    assert 0 < offset <= 400_000
    answer = await client.call("PUT", f"{path}?digest={Digest.of(data)}", data=data[offset:])
    assert answer.status == 201
    assert (await client.call("GET", answer.headers["Location"])).body == data


async def test_expect_continue_is_answered_before_the_body(client: Client) -> None:
    digest = Digest.of(b"12345")
    head = (
        f"POST /v2/a/blobs/uploads/?digest={digest} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
        "Expect: 100-continue\r\n\r\n"
    )
    reader, writer = await raw(client, head.encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    writer.write(b"12345")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201 ")
    writer.close()
    await writer.wait_closed()


async def test_a_full_disk_is_507_and_the_space_is_returned(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = await begin(client)
    await client.call("PATCH", url, data=b"x" * 300_000)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(GrowingFile, "write_sync", full)
    answer = await client.call("PATCH", url, data=b"y" * 300_000)
    assert answer.status == 507
    monkeypatch.undo()
    assert (await client.call("GET", url)).status == 404
    assert [path for path in (tmp_path / "root").rglob("*") if path.is_file()] == []


async def test_parallel_pushes_of_one_blob_end_well(client: Client) -> None:
    data = os.urandom(400_000)
    await asyncio.gather(*(client.push_blob(f"r{n % 3}", data) for n in range(12)))
    for n in range(3):
        assert (await client.call("GET", f"/v2/r{n}/blobs/{Digest.of(data)}")).body == data


async def test_a_quota_holds(start: Start) -> None:
    client = await start(quotas={"team": 1000})
    await client.push_blob("team/a", b"x" * 900)
    answer = await client.call("POST", f"/v2/team/b/blobs/uploads/?digest={Digest.of(b'y' * 200)}", data=b"y" * 200)
    assert (answer.status, answer.code) == (403, "DENIED")
    await client.push_blob("other", b"y" * 200)
    assert (await client.call("HEAD", f"/v2/team/b/blobs/{Digest.of(b'y' * 200)}")).status == 404


async def test_a_mount_counts_like_an_upload(start: Start) -> None:
    client = await start(quotas={"team": 1000})
    large, small = await client.push_blob("other", b"x" * 1001), await client.push_blob("other", b"y" * 600)
    answer = await client.call("POST", f"/v2/team/a/blobs/uploads/?mount={large}&from=other")
    assert (answer.status, answer.code) == (403, "DENIED")
    assert (await client.call("HEAD", f"/v2/team/a/blobs/{large}")).status == 404
    assert (await client.call("POST", f"/v2/team/a/blobs/uploads/?mount={small}&from=other")).status == 201
    assert (await client.call("POST", f"/v2/team/b/blobs/uploads/?mount={small}&from=other")).status == 201
    answer = await client.call("POST", f"/v2/team/a/blobs/uploads/?digest={Digest.of(b'z' * 600)}", data=b"z" * 600)
    assert (answer.status, answer.code) == (403, "DENIED"), "what was mounted counts at once"


async def test_what_was_deleted_makes_room_before_anybody_is_refused(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start(quotas={"team": 1000})
    old = await client.push_blob("team/a", b"x" * 900)
    assert (await client.call("DELETE", f"/v2/team/a/blobs/{old}")).status == 202
    monkeypatch.setattr("registry.server.pushrules._REFUSAL_SECONDS", 0.0)
    await client.push_blob("team/a", b"y" * 900)
