from pathlib import Path

import pytest

from registry.config import Grant, Settings
from registry.server.grants import Grants

from .conftest import ANN, Start

ALL = frozenset({"pull", "push", "delete"})
RULES = (
    Grant("ann", ("**",), ALL),
    Grant("@devs", ("team/**",), frozenset({"pull", "push"})),
    Grant("*", ("shared/*",), frozenset({"pull"})),
    Grant("anonymous", ("public/**",), frozenset({"pull"})),
)


@pytest.mark.parametrize(
    ("user", "repository", "action", "allowed"),
    [
        ("ann", "any/thing", "delete", True),
        ("bob", "team/a/b", "push", True),
        ("bob", "team/a", "delete", False),
        ("bob", "other", "pull", False),
        ("eve", "team/a", "pull", False),
        ("eve", "shared/x", "pull", True),
        ("eve", "shared/x/y", "pull", False),
        ("", "shared/x", "pull", False),
        ("", "public/x", "pull", True),
        ("eve", "public/x", "pull", True),
        ("", "public/x", "push", False),
        ("anonymous", "team/a", "pull", False),
    ],
)
def test_a_grant_allows_what_it_says(tmp_path: Path, user: str, repository: str, action: str, allowed: bool) -> None:
    grants = Grants(Settings(root=tmp_path, grants=RULES, groups={"devs": ("bob",)}))
    assert grants.allows(user, repository, action) is allowed


def test_without_rules_users_may_everything_and_others_nothing(tmp_path: Path) -> None:
    grants = Grants(Settings(root=tmp_path))
    assert grants.allows("ann", "x", "delete") and not grants.allows("", "x", "pull")


async def test_the_file_is_read_again_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "grants.yml"
    grants = Grants(Settings(root=tmp_path, grants_file=path))
    await grants.refresh()
    assert not grants.allows("bob", "a", "pull"), "a missing file grants nothing"
    path.write_text("groups: {g: [bob]}\ngrants: [{who: '@g', repositories: a, actions: [pull]}]")
    grants._next_look = 0.0
    await grants.refresh()
    assert grants.allows("bob", "a", "pull") and not grants.allows("bob", "a", "push")
    for broken in ("grants: [{who: x}]", "{", "[]", "grants: 5"):
        path.write_text(broken)
        grants._next_look = 0.0
        await grants.refresh()
        assert grants.allows("bob", "a", "pull")


async def test_anonymous_pull_with_authenticated_push(start: Start, users: Path) -> None:
    rules = (Grant("*", ("**",), ALL), Grant("anonymous", ("public/**",), frozenset({"pull"})))
    client = await start(htpasswd=users, grants=rules)
    await client.push_image("public/a", "v1", auth=ANN)
    await client.push_image("private", "v1", auth=ANN)
    assert (await client.call("GET", "/v2/public/a/manifests/v1")).status == 200
    assert (await client.call("GET", "/v2/private/manifests/v1")).status == 401
    assert (await client.call("POST", "/v2/public/a/blobs/uploads/")).status == 401
    catalog = await client.call("GET", "/v2/_catalog", auth=ANN)
    assert catalog.json["repositories"] == ["private", "public/a"]


async def test_a_known_user_without_rights_gets_403_and_cannot_mount(start: Start, users: Path) -> None:
    rules = (Grant("ann", ("mine",), ALL), Grant("nobody", ("theirs",), ALL))
    client = await start(htpasswd=users, grants=rules)
    answer = await client.call("GET", "/v2/theirs/manifests/x", auth=ANN)
    assert (answer.status, answer.code) == (403, "DENIED")
    store = client.server
    digest = await store.blobs.put(b"secret")
    await store.repositories.link_blob("theirs", digest)
    answer = await client.call("POST", f"/v2/mine/blobs/uploads/?mount={digest}&from=theirs", auth=ANN)
    assert answer.status == 202, "a mount from what one may not read opens an ordinary upload"
    answer = await client.call("POST", f"/v2/mine/blobs/uploads/?mount={digest}", auth=ANN)
    assert answer.status == 202, "and so does one from anywhere, where only such repositories have it"


async def test_a_file_that_may_be_there_makes_no_rules_until_it_is(tmp_path: Path) -> None:
    path = tmp_path / "grants.yml"
    optional = Grants(Settings(root=tmp_path, grants_file=path, grants_file_optional=True))
    named = Grants(Settings(root=tmp_path, grants_file=path))
    for grants in (optional, named):
        await grants.refresh()
    assert optional.is_empty and optional.allows("ann", "x", "push")
    assert not named.is_empty and not named.allows("ann", "x", "push")
    path.write_text("grants: []")
    optional._next_look = 0.0
    await optional.refresh()
    assert not optional.is_empty and not optional.allows("ann", "x", "push")
    path.unlink()
    optional._next_look = 0.0
    await optional.refresh()
    assert not optional.is_empty, "a file that is gone opens nothing"
