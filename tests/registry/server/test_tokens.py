import asyncio
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from registry.config import Grant, TokenAuth
from registry.server.jwt import jwk_of, sign
from registry.store import paths
from registry.users import set_user_sync

from .conftest import ANN, Answer, Client, Start

RULES = (
    Grant("ann", ("team/**",), frozenset({"pull", "push"})),
    Grant("anonymous", ("public/**",), frozenset({"pull"})),
)


@pytest.fixture
async def tokens(start: Start, users: Path) -> Client:
    return await start(htpasswd=users, tokens=True, grants=RULES)


async def token(client: Client, *scopes: str, auth: Any = ANN, **query: str) -> Answer:
    parameters = [("service", "berth registry"), *query.items(), *(("scope", scope) for scope in scopes)]
    return await client.call("GET", "/auth/token", params=parameters, auth=auth)


def bearer(answer: Answer) -> dict[str, str]:
    return {"Authorization": f"Bearer {answer.json['token']}"}


async def test_the_challenge_leads_to_a_token_that_works(tokens: Client) -> None:
    answer = await tokens.call("POST", "/v2/team/a/blobs/uploads/")
    challenge = answer.headers["WWW-Authenticate"]
    assert answer.status == 401
    assert f'realm="{tokens.base}/auth/token"' in challenge and 'scope="repository:team/a:pull,push"' in challenge
    given = await token(tokens, "repository:team/a:pull,push")
    assert given.json["expires_in"] >= 60 and given.headers["Cache-Control"] == "no-store"
    assert (await tokens.call("POST", "/v2/team/a/blobs/uploads/", headers=bearer(given))).status == 202
    assert (await tokens.call("GET", "/v2/", headers=bearer(given))).status == 200


async def test_a_token_is_worth_what_was_granted(tokens: Client) -> None:
    given = await token(tokens, "repository:team/a:pull", "repository:other:pull,push,delete")
    for path in ("team/a", "team/b", "other"):
        answer = await tokens.call("POST", f"/v2/{path}/blobs/uploads/", headers=bearer(given))
        assert answer.status == 401 and 'error="insufficient_scope"' in answer.headers["WWW-Authenticate"]
    anonymous = await token(tokens, "repository:public/a:pull,push", auth=None)
    assert (await tokens.call("GET", "/v2/public/a/manifests/x", headers=bearer(anonymous))).status == 404
    assert (await tokens.call("POST", "/v2/public/a/blobs/uploads/", headers=bearer(anonymous))).status == 401


async def test_wrong_passwords_get_no_token(tokens: Client) -> None:
    assert (await token(tokens, auth=("ann", "wrong"))).status == 401
    assert (await tokens.call("GET", "/auth/token", headers={"Authorization": "Bearer x"})).status == 401
    assert (await tokens.call("PUT", "/auth/token")).status == 405


async def test_oauth_with_a_refresh_token_that_dies_with_the_password(tokens: Client, users: Path) -> None:
    form = {"grant_type": "password", "username": "ann", "password": "secret", "access_type": "offline"}
    first = await tokens.call("POST", "/auth/token", data={**form, "scope": "repository:team/a:push"})
    refresh = {"grant_type": "refresh_token", "refresh_token": first.json["refresh_token"]}
    second = await tokens.call("POST", "/auth/token", data={**refresh, "scope": "repository:team/a:pull,push"})
    assert (await tokens.call("POST", "/v2/team/a/blobs/uploads/", headers=bearer(second))).status == 202
    used = {"Authorization": f"Bearer {first.json['refresh_token']}"}
    assert (await tokens.call("GET", "/v2/", headers=used)).status == 401, "a refresh token is no access token"
    await asyncio.to_thread(set_user_sync, users, "ann", "changed", cost=4)
    assert tokens.server.access.htpasswd is not None
    tokens.server.access.htpasswd._next_look = 0.0
    assert (await tokens.call("POST", "/auth/token", data=refresh)).status == 401
    assert (await tokens.call("POST", "/auth/token", data={"grant_type": "magic"})).status == 401


async def test_replicas_believe_each_other(start: Start, users: Path) -> None:
    one = await start(htpasswd=users, tokens=True, grants=RULES)
    two = await start(htpasswd=users, tokens=True, grants=RULES)
    given = await token(one, "repository:team/a:pull,push")
    assert (await two.call("POST", "/v2/team/a/blobs/uploads/", headers=bearer(given))).status == 202


async def test_a_token_of_another_key_is_refused(tokens: Client) -> None:
    claims = {"iss": "berth", "aud": "berth registry", "exp": 1 << 40, "sub": "ann", "access": []}
    forged = sign(claims, ec.generate_private_key(ec.SECP256R1()))
    answer = await tokens.call("GET", "/v2/", headers={"Authorization": f"Bearer {forged}"})
    assert answer.status == 401 and 'error="invalid_token"' in answer.headers["WWW-Authenticate"]


async def test_the_catalog_takes_a_token_of_its_own_and_shows_what_may_be_pulled(
    start: Start, users: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = await start(htpasswd=users, tokens=True, grants=(*RULES, Grant("bob", ("other",), frozenset({"push"}))))
    given = await token(tokens, "repository:team/a:pull,push")
    await tokens.push_image("team/a", "v1", headers=bearer(given))
    for repository in ("other", "public/b"):
        data = await tokens.server.blobs.put(b"{}")
        await tokens.server.repositories.link_blob(repository, data)
        await tokens.server.repositories.put_manifest(
            repository, "v1", b'{"schemaVersion":2,"config":{"digest":"%s","size":2}}' % data.encode(), check=False
        )
    answer = await tokens.call("GET", "/v2/_catalog", headers=bearer(given))
    assert answer.status == 401 and 'scope="registry:catalog:*"' in answer.headers["WWW-Authenticate"]
    caplog.set_level(logging.INFO, "berth.registry.audit")
    caplog.clear()
    catalog = await token(tokens, "registry:catalog:*")
    answer = await tokens.call("GET", "/v2/_catalog", headers=bearer(catalog))
    assert answer.json == {"repositories": ["public/b", "team/a"]}
    assert (await tokens.call("GET", "/v2/_catalog")).status == 401
    lines = [record.getMessage() for record in caplog.records if record.name == "berth.registry.audit"]
    assert lines == [
        "token user='ann' for registry:catalog actions=*",
        "allowed user='ann' catalog",
        "refused user='anonymous' catalog",
    ]


async def test_a_refused_token_is_told_what_to_ask_for(tokens: Client) -> None:
    stale = {"Authorization": "Bearer x.y.z"}
    for method, path, scope in (
        ("GET", "/v2/team/a/manifests/v1", "repository:team/a:pull"),
        ("PATCH", "/v2/team/a/blobs/uploads/1", "repository:team/a:pull,push"),
        ("DELETE", "/v2/team/a/manifests/v1", "repository:team/a:delete"),
        ("GET", "/v2/_catalog", "registry:catalog:*"),
    ):
        challenge = (await tokens.call(method, path, headers=stale)).headers["WWW-Authenticate"]
        assert challenge.endswith(f'scope="{scope}",error="invalid_token"')
    assert "scope" not in (await tokens.call("GET", "/v2/", headers=stale)).headers["WWW-Authenticate"]


async def test_who_wants_to_mount_is_told_to_ask_for_the_source_too(tokens: Client) -> None:
    answer = await tokens.call("POST", "/v2/team/a/blobs/uploads/?mount=sha256:0&from=team/b")
    assert 'scope="repository:team/a:pull,push repository:team/b:pull"' in answer.headers["WWW-Authenticate"]
    answer = await tokens.call("POST", '/v2/team/a/blobs/uploads/?mount=sha256:0&from=x"y')
    assert 'scope="repository:team/a:pull,push"' in answer.headers["WWW-Authenticate"]


async def test_refresh_tokens_of_an_open_registry_end_when_it_gets_users(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "later"
    client = await start(htpasswd=path, htpasswd_optional=True, tokens=True)
    given = await token(client, auth=("ghost", "x"), offline_token="true")
    form = {"grant_type": "refresh_token", "refresh_token": given.json["refresh_token"]}
    assert (await client.call("POST", "/auth/token", data=form)).status == 200
    await asyncio.to_thread(set_user_sync, path, *ANN, cost=4)
    gate = client.server.access.htpasswd
    assert gate is not None
    gate._next_look = 0.0
    assert (await client.call("POST", "/auth/token", data=form)).status == 401


async def test_a_token_servers_new_keys_are_taken_up_by_a_reload(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, (old, new) = tmp_path / "jwks.json", (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def trust(key: ec.EllipticCurvePrivateKey) -> None:
        path.write_text(json.dumps({"keys": [jwk_of(key.public_key())]}))

    trust(old)
    client = await start(token_auth=TokenAuth("http://tokens/", "registry", "them", jwks=path))
    access = [{"type": "repository", "name": "a", "actions": ["pull"]}]
    claims = {"iss": "them", "aud": "registry", "exp": time.time() + 60, "sub": "ann", "access": access}

    async def status(key: ec.EllipticCurvePrivateKey) -> int:
        headers = {"Authorization": f"Bearer {sign(claims, key)}"}
        return (await client.call("GET", "/v2/a/manifests/x", headers=headers)).status

    async def reload() -> None:
        caplog.clear()
        client.server.reload(client.server.settings)
        async with asyncio.timeout(10):
            while "configuration of the registry reloaded" not in caplog.text:
                await asyncio.sleep(0.01)

    caplog.set_level(logging.INFO)
    assert (await status(old), await status(new)) == (404, 401)
    trust(new)
    await reload()
    assert (await status(old), await status(new)) == (401, 404)
    path.write_text("{")
    await reload()
    assert "cannot read the keys of the token server again" in caplog.text and await status(new) == 404


async def test_anonymous_clients_are_sent_for_a_token_as_soon_as_anything_is_for_them(
    start: Start, users: Path, tmp_path: Path
) -> None:
    """docker and skopeo, asked for a password that they do not have, do not even try."""
    grants = tmp_path / "grants.yml"
    client = await start(htpasswd=users, grants_file=grants, grants_file_optional=True)
    assert (await client.call("GET", "/v2/")).headers["WWW-Authenticate"].startswith("Basic ")
    assert (await client.call("GET", "/auth/token")).status == 404
    await client.push_image("public/a", "v1", auth=ANN)
    grants.write_text("grants: [{who: anonymous, repositories: [public/**], actions: [pull]}]")
    client.server.access.grants._next_look = 0.0
    challenge = (await client.call("GET", "/v2/")).headers["WWW-Authenticate"]
    assert challenge == f'Bearer realm="{client.base}/auth/token",service="berth registry"'
    given = await token(client, "repository:public/a:pull,push", auth=None)
    assert (await client.call("GET", "/v2/public/a/manifests/v1", headers=bearer(given))).status == 200
    assert (await client.call("POST", "/v2/public/a/blobs/uploads/", headers=bearer(given))).status == 401
    assert (await client.call("GET", "/v2/", auth=ANN)).status == 200, "passwords go on to count"


async def test_the_key_is_never_for_others_to_read(
    start: Start, users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "root" / paths.state("token.key")

    def die(*_: object) -> None:
        raise KeyError("killed")

    with monkeypatch.context() as crashing:
        crashing.setattr(Path, "chmod", die)
        await start(htpasswd=users, tokens=True)
    assert key.stat().st_mode & 0o777 == 0o600, "made so, not changed afterwards"
    key.chmod(0o644)
    await token(await start(htpasswd=users, tokens=True))
    assert key.stat().st_mode & 0o777 == 0o600, "what an earlier version left is seen to"
