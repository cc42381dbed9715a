import asyncio
import base64
import logging
import os
from pathlib import Path

import pytest

from registry.config import Grant, Settings
from registry.digest import Digest
from registry.server.auth import ANONYMOUS, Access, Identity, is_loopback, parse_basic
from registry.users import remove_user_sync, set_user_sync

from .conftest import ANN, Start


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


async def test_without_users_loopback_is_open_and_elsewhere_is_refused(start: Start) -> None:
    client = await start()
    assert (await client.call("GET", "/v2/")).status == 200
    with pytest.raises(PermissionError, match="refusing to serve everybody"):
        await start(address="0.0.0.0:0")
    await start(address="0.0.0.0:0", anonymous=True)


async def test_users_need_their_password(start: Start, users: Path) -> None:
    client = await start(htpasswd=users, realm='my "realm"')
    answer = await client.call("GET", "/v2/")
    assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
    assert answer.headers["WWW-Authenticate"] == "Basic realm=\"my 'realm'\""
    assert (await client.call("GET", "/v2/", auth=ANN)).status == 200
    for wrong in (("ann", "wrong"), ("bob", "secret"), ("", "")):
        assert (await client.call("GET", "/v2/", auth=wrong)).status == 401
    for header in ("Basic", "Basic !!", "Basic " + base64.b64encode(b"nocolon").decode(), "Bearer x", "Digest x"):
        assert (await client.call("GET", "/v2/", headers={"Authorization": header})).status == 401
    answer = await client.call("PUT", "/v2/a/manifests/x", data=b"{}")
    assert answer.status == 401
    await client.push_image("a", "x", auth=ANN)
    assert (await client.call("GET", "/v2/_catalog")).status == 401


async def test_the_user_file_is_read_again_when_it_changes(users: Path) -> None:
    access = Access(Settings(root=users.parent, htpasswd=users))
    assert access.htpasswd is not None
    assert await access.authenticate("ann", "secret") == Identity("ann")
    await asyncio.to_thread(set_user_sync, users, "ann", "changed", cost=4)
    await asyncio.to_thread(set_user_sync, users, "bob", "second", cost=4)
    access.htpasswd._next_look = 0.0
    assert await access.authenticate("ann", "secret") is None
    assert await access.authenticate("bob", "second") == Identity("bob")
    await asyncio.to_thread(remove_user_sync, users, "ann")
    await asyncio.to_thread(remove_user_sync, users, "bob")
    access.htpasswd._next_look = 0.0
    assert await access.authenticate("bob", "second") is None
    assert not access.is_open, "a registry that had users must not open when the last one goes"


async def test_a_broken_user_file_keeps_the_users_in_force(users: Path) -> None:
    access = Access(Settings(root=users.parent, htpasswd=users))
    await access.refresh()
    users.write_text("broken")
    os.utime(users, (1, 1))
    assert access.htpasswd is not None
    access.htpasswd._next_look = 0.0
    assert await access.authenticate("ann", "secret") == Identity("ann")


async def test_only_bcrypt_counts(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text("md5:$apr1$abc$def\nplain:secret\nbad:$2b$nonsense\n")
    access = Access(Settings(root=tmp_path, htpasswd=path))
    for user in ("md5", "plain", "bad"):
        assert await access.authenticate(user, "secret") is None


async def test_identity_from_headers(users: Path) -> None:
    access = Access(Settings(root=users.parent, htpasswd=users))
    assert await access.identify(None) is ANONYMOUS
    assert await access.identify(basic("ann", "secret")) == Identity("ann")
    assert not access.authorize(ANONYMOUS, "a", "pull")
    assert access.authorize(Identity("ann"), "a", "delete")


def test_small_readers() -> None:
    assert parse_basic(base64.b64encode(b"a:b:c").decode()) == ("a", "b:c")
    assert parse_basic("\x00") is None
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("") and not is_loopback("example.com")


async def test_every_decision_is_a_line_of_the_audit_log(
    start: Start, users: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = (Grant("ann", ("a",), frozenset({"pull", "push"})), Grant("anonymous", ("b",), frozenset({"pull"})))
    client = await start(htpasswd=users, grants=rules, immutable_tags=("a:v*",), access_log=True)
    caplog.set_level(logging.INFO, "berth.registry")
    await client.push_image("a", "v1", auth=ANN)
    config = Digest.of(b"{}")
    caplog.clear()
    await client.call("GET", "/v2/b/manifests/x")
    await client.call("GET", "/v2/a/manifests/v1", auth=ANN)
    await client.call("GET", "/v2/c/manifests/v1", auth=ANN)
    await client.call("GET", "/v2/a/manifests/v1")
    await client.call("GET", "/v2/a/manifests/v1", auth=("ann", "wrong"))
    document = b'{"schemaVersion":2,"config":{"digest":"%s","size":2}}' % config.encode()
    assert (await client.call("PUT", "/v2/a/manifests/v1", data=document, auth=ANN)).status == 403
    lines = [record.getMessage() for record in caplog.records if record.name == "berth.registry.audit"]
    assert lines == [
        "allowed user='anonymous' repository=b actions=pull",
        "allowed user='ann' repository=a actions=pull",
        "refused user='ann' repository=c actions=pull",
        "refused user='anonymous' repository=a actions=pull",
        "login refused user='ann'",
        "allowed user='ann' repository=a actions=pull,push",
        "refused user='ann' repository=a: the tag v1 is immutable",
    ]
    logged = [record.getMessage() for record in caplog.records if record.name == "berth.registry.access"]
    assert " - ann [" in logged[2] and '" 403 ' in logged[2], "also a refusal has a name in the access log"


async def test_a_user_file_that_is_named_but_missing_lets_nobody_in(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "users"
    client = await start(htpasswd=path, address="0.0.0.0:0", anonymous=True)
    assert (await client.call("GET", "/v2/")).status == 401
    assert (await client.call("GET", "/v2/", auth=ANN)).status == 401
    assert len([record for record in caplog.records if "nobody can log in" in record.getMessage()]) == 1
    await asyncio.to_thread(set_user_sync, path, *ANN, cost=4)
    gate = client.server.access.htpasswd
    assert gate is not None
    gate._next_look = 0.0
    assert (await client.call("GET", "/v2/", auth=ANN)).status == 200
    optional = await start(htpasswd=tmp_path / "none", htpasswd_optional=True)
    assert (await optional.call("GET", "/v2/")).status == 200


async def test_a_user_file_that_comes_broken_is_like_none(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "users"
    client = await start(htpasswd=path)
    path.write_text("broken")
    gate = client.server.access.htpasswd
    assert gate is not None
    gate._next_look = 0.0
    assert (await client.call("GET", "/v2/")).status == 401
    path.unlink()
    path.mkdir()
    gate._next_look = 0.0
    assert (await client.call("GET", "/v2/")).status == 401
