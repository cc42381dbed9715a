"""What clients may do to a whole server: lie about hosts, dawdle with heads, compress, and ask for absurd ranges."""

from __future__ import annotations

import asyncio
import gzip
import logging
from dataclasses import fields, replace
from pathlib import Path

import pytest

from registry.config import NEEDS_RESTART, Grant, Retention, Settings
from registry.digest import Digest
from registry.server import app

from .conftest import Client, Start


async def raw(client: Client, request: bytes) -> bytes:
    """The answer's head to bytes sent as they are."""
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(request)
    async with asyncio.timeout(5):
        answer = await reader.read(65536)
    writer.close()
    await writer.wait_closed()
    return answer.partition(b"\r\n\r\n")[0]


async def test_half_a_head_is_not_waited_for(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "IDLE_SECONDS", 0.3)
    client = await start()
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(b"GET /v2/ HTTP/1.1\r\nHo")
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    "header",
    [
        b"Host: a\x0bSet-Cookie:x",
        b"Host: a\r\nX-Forwarded-Host: b%0d%0aSet-Cookie: x=y",
        b"Host: a\r\nX-Forwarded-Host: b\\r\\nSet-Cookie:x",
        b"Host: a\r\nX-Forwarded-Proto: javascript",
        b'Host: a\r\nForwarded: proto="ht tp";host="x y<>"',
    ],
)
async def test_no_header_gets_into_an_answer(client: Client, header: bytes) -> None:
    request = b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\n" + header + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    head = await raw(client, request)
    lines = head.split(b"\r\n")
    # A control character makes no header at all; everything else is quoted or replaced.
    assert lines[0].split()[1] == (b"400" if b"\x0b" in header else b"202")
    assert not [line for line in lines if line.lower().startswith(b"set-cookie")]
    for line in lines:
        if line.lower().startswith(b"location:"):
            assert line.split(b" ", 1)[1].startswith((b"http://", b"https://")) and b" " not in line[10:]


async def test_nothing_is_ever_decompressed(client: Client) -> None:
    packed = gzip.compress(b"0" * 100_000)
    digest = Digest.of(packed)
    answer = await client.call(
        "POST", f"/v2/a/blobs/uploads/?digest={digest}", data=packed, headers={"Content-Encoding": "gzip"}
    )
    assert answer.status == 201
    assert (await client.call("GET", f"/v2/a/blobs/{digest}")).body == packed
    answer = await client.call("PUT", "/v2/a/manifests/x", data=packed, headers={"Content-Encoding": "gzip"})
    assert answer.code == "MANIFEST_INVALID"


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("bytes=0-99999999999999999999999", 416),
        ("bytes=99999999999999999999999-", 416),
        ("bytes=5-4", 416),
        ("bytes=-0", 416),
        ("bytes=--5", 416),
        ("bytes=-9223372036854775808", 206),
        ("bytes=0-9223372036854775807", 206),
        ("bytes=0-0,2-2," + "4-4," * 500, 200),
    ],
)
async def test_absurd_ranges(client: Client, header: str, status: int) -> None:
    digest = await client.push_blob("a", b"0123456789")
    answer = await client.call("GET", f"/v2/a/blobs/{digest}", headers={"Range": header})
    assert answer.status == status
    assert status == 416 or answer.body == b"0123456789"


@pytest.mark.parametrize("span", ["5-4", "-1-5", "0-99999999999999999999", "18446744073709551616-18446744073709551620"])
async def test_absurd_positions_of_chunks(client: Client, span: str) -> None:
    path = (await client.call("POST", "/v2/a/blobs/uploads/")).headers["Location"]
    answer = await client.call("PATCH", path, data=b"01234", headers={"Content-Range": span})
    assert answer.status in (400, 416)
    assert (await client.call("GET", path)).headers["Range"] == "0-0"


@pytest.mark.parametrize(
    "path",
    [
        "/v2/%2e%2e/%2e%2e/x/manifests/latest",
        "/v2/a/../../../../etc/passwd",
        "/v2/a%2f..%2f..%2fb/blobs/uploads/",
        "/v2/a/blobs/uploads/..%2f..%2f..%2f_layers",
        "/v2/a/blobs/uploads/%2e%2e",
        "/v2/a/blobs/sha256:..%2f..%2f..%2f..%2fstartedat",
        "/v2/a/blobs/sha256:%00",
        "/v2/a/manifests/..%2f..%2frevisions",
        "/v2/a/manifests/.%2e",
        "/v2/a/manifests/-x",
        "/v2/_uploads/manifests/x",
        "/v2/a/_layers/manifests/x",
        "/v2/a/b%00c/manifests/x",
        "/v2/" + "a/" * 200 + "manifests/x",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "POST"])
async def test_tricks_in_paths_reach_nothing(client: Client, method: str, path: str) -> None:
    await client.push_image("a", "v1")
    root = client.server.settings.root
    before = sorted(str(file.relative_to(root.parent)) for file in root.parent.rglob("*"))
    request = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
    head = await raw(client, request.encode())
    assert head.split()[1][:1] == b"4", head
    assert sorted(str(file.relative_to(root.parent)) for file in root.parent.rglob("*")) == before


async def test_a_reload_changes_what_may_be_pushed_deleted_and_listed(client: Client) -> None:
    await client.push_image("a", "v1")
    server = client.server
    server.reload(replace(server.settings, immutable_tags=("a:v*",), headers={"X-From": "here"}, delete_enabled=False))
    answer = await client.call("DELETE", "/v2/a/manifests/v1")
    assert (answer.status, answer.headers["X-From"]) == (405, "here")
    server.reload(replace(server.settings, delete_enabled=True))
    assert (await client.call("DELETE", "/v2/a/manifests/v1")).code == "DENIED"
    server.reload(replace(server.settings, immutable_tags=(), quotas={"a": 1}, headers={}))
    answer = await client.call("DELETE", "/v2/a/manifests/v1")
    assert answer.status == 202 and "X-From" not in answer.headers
    with pytest.raises(AssertionError):
        await client.push_image("a", "v2", b"more than a quota of one byte")
    server.reload(replace(server.settings, retention=(Retention(("**",), keep_last=1),)))
    assert server.collector.retention == (Retention(("**",), keep_last=1),)


async def test_a_reload_changes_grants(start: Start, users: Path) -> None:
    client = await start(htpasswd=users, grants=(Grant("anonymous", ("**",), frozenset({"pull"})),))
    assert (await client.call("GET", "/v2/a/tags/list")).status == 404
    client.server.reload(replace(client.server.settings, grants=(Grant("ann", ("**",), frozenset({"pull"})),)))
    assert (await client.call("GET", "/v2/a/tags/list")).status == 401


async def test_a_reload_that_would_let_everybody_in_is_refused(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    client = await start(address="0.0.0.0:0", grants=(Grant("anonymous", ("**",), frozenset({"pull"})),))
    server = client.server
    server.reload(replace(server.settings, grants=(), delete_enabled=False))
    assert "was not reloaded: refusing to serve everybody" in caplog.text
    assert server.settings.delete_enabled and (await client.call("PUT", "/v2/a/manifests/x")).status == 401


async def test_what_needs_a_restart_is_named_and_stays(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    server = client.server
    before = server.settings
    server.reload(replace(before, address="127.0.0.1:1", anonymous=True, catalog_max_entries=7))
    assert "needs a restart to take effect: berth.anonymous, http.addr" in caplog.text
    assert server.settings == replace(before, catalog_max_entries=7)


def test_every_setting_is_known_to_be_taken_over_or_not() -> None:
    taken_over = set(
        """host relative_urls headers drain_seconds realm grants groups immutable_tags quotas delete_enabled read_only
        catalog_max_entries tags_max validate_manifests sparse_indexes url_allow url_deny warnings purge_uploads
        purge_dry_run purge_age_seconds purge_interval_seconds collect_interval_seconds collect_grace_seconds
        collect_untagged retention webhooks event_references log_level log_fields upstreams""".split()
    )
    assert {item.name for item in fields(Settings)} - NEEDS_RESTART.keys() == taken_over


async def test_upkeep_begins_anew_when_its_times_change(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await client.push_image("a", "v1")
    upload = (await client.call("POST", "/v2/a/blobs/uploads/")).headers["Location"]
    server = client.server
    server.reload(
        replace(server.settings, purge_age_seconds=-1.0, purge_interval_seconds=0.05, collect_interval_seconds=0.05)
    )  # fmt: skip
    async with asyncio.timeout(10):
        while (await client.call("GET", upload)).status != 404:
            await asyncio.sleep(0.05)
        while "collected 0 blobs" not in caplog.text:
            await asyncio.sleep(0.05)
    server.reload(replace(server.settings, read_only=True))
    async with asyncio.timeout(10):
        while "configuration of the registry reloaded: read_only" not in caplog.text:
            await asyncio.sleep(0.01)
    assert not server._scheduled


async def test_upkeep_survives_a_storage_that_fails_for_a_while(
    client: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    server = client.server
    failures = [OSError(28, "no space left on device"), RuntimeError("surprise")]
    save = server.pulls.save

    async def fail() -> None:
        if failures:
            raise failures.pop()
        await save()

    monkeypatch.setattr(server.pulls, "save", fail)
    server.reload(replace(server.settings, collect_interval_seconds=0.02))
    async with asyncio.timeout(10):
        while "collected 0 blobs" not in caplog.text:
            await asyncio.sleep(0.02)
    assert caplog.text.count("a collection failed, and is tried again later") == 2


async def test_the_log_tells_where_it_listens_and_how(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "berth.registry")
    client = await start(debug_address="127.0.0.1:0")
    main, debug = (f"{host}:{port}" for host, port in client.server.addresses())
    assert f"registry listening on {main} without TLS" in caplog.text
    assert f"health and metrics on {debug}" in caplog.text


async def test_unfinished_files_are_cleared_while_it_runs(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_CLEAR_SECONDS", 0.02)
    monkeypatch.setattr(app, "_ABANDONED_AFTER_SECONDS", -3600.0)
    client = await start()
    old = client.server.blobs.temp_dir() / "old"
    old.write_bytes(b"")
    async with asyncio.timeout(10):
        while any(old.parent.iterdir()):
            await asyncio.sleep(0.02)
