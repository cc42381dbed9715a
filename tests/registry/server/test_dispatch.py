from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from registry.digest import Digest
from registry.errors import (
    BlobsMissing,
    BlobUnknown,
    DigestMismatch,
    ManifestInvalid,
    ManifestUnknown,
)
from registry.server.dispatch import split_path, translate
from registry.store.uploads import UploadBusy, UploadUnknown

from .conftest import ANN, Client, Start

D = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v2/", ("base", "", "")),
        ("/v2", ("base", "", "")),
        ("/v2/_catalog", ("catalog", "", "")),
        ("/v2/a/manifests/latest", ("manifest", "a", "latest")),
        (f"/v2/a/b/c/manifests/{D}", ("manifest", "a/b/c", D)),
        (f"/v2/a/blobs/{D}", ("blob", "a", D)),
        ("/v2/a/blobs/uploads/", ("uploads", "a", "")),
        ("/v2/a/blobs/uploads", ("uploads", "a", "uploads")),
        ("/v2/a/blobs/uploads/1-2-3", ("upload", "a", "1-2-3")),
        ("/v2/a/tags/list", ("tags", "a", "")),
        (f"/v2/a/referrers/{D}", ("referrers", "a", D)),
        ("/v2/manifests/manifests/blobs", ("manifest", "manifests", "blobs")),
        (f"/v2/a/blobs/uploads/blobs/{D}", ("blob", "a/blobs/uploads", D)),
    ],
)
def test_paths_are_taken_apart_from_the_end(path: str, route: tuple[str, str, str]) -> None:
    found = split_path(path)
    assert found is not None
    assert found[:2] == route[:2]
    assert found[2] == route[2] or route[0] in ("uploads", "tags")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/v3/",
        "/v2/a",
        "/v2//manifests/x",
        "/v2/../manifests/x",
        "/v2/a/../b/manifests/x",
        "/v2/A/manifests/x",
        "/v2/a/_manifests/manifests/x",
        "/v2/a/manifests/",
        "/v2/a/manifests/.hidden",
        "/v2/a/manifests/" + "t" * 129,
        "/v2/a/manifests/x y",
        "/v2/a/manifests/a:b\r\nX: y",
        "/v2/a/blobs/uploads/../../x",
        "/v2/a/blobs/uploads/" + "u" * 100,
        "/v2/a/blobs/uploads/..",
        "/v2/a/tags/other",
        "/v2/" + "a" * 300 + "/manifests/x",
    ],
)
def test_what_fits_no_grammar_is_no_route(path: str) -> None:
    assert split_path(path) is None


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (DigestMismatch(Digest.of(b"a"), Digest.of(b"b")), 400, "DIGEST_INVALID"),
        (ManifestUnknown("r", "t"), 404, "MANIFEST_UNKNOWN"),
        (BlobUnknown(D), 404, "BLOB_UNKNOWN"),
        (ManifestInvalid("x"), 400, "MANIFEST_INVALID"),
        (BlobsMissing([D, D]), 400, "MANIFEST_BLOB_UNKNOWN"),
        (UploadUnknown("u"), 404, "BLOB_UPLOAD_UNKNOWN"),
        (UploadBusy("u"), 429, "TOOMANYREQUESTS"),
        (OSError(28, "No space left on device"), 507, "UNKNOWN"),
    ],
)
def test_every_domain_error_has_one_answer(error: Exception, status: int, code: str) -> None:
    known = translate(error)
    assert known is not None and known.status == status
    assert {entry["code"] for entry in known.entries()} == {code}


def test_what_nobody_foresaw_is_not_explained() -> None:
    assert translate(RuntimeError("x")) is None


async def test_answers_carry_the_standing_headers(start: Start) -> None:
    client = await start(headers={"X-Content-Type-Options": "nosniff"})
    answer = await client.call("GET", "/v2/")
    assert (answer.status, answer.body) == (200, b"{}")
    assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert (await client.call("GET", "/")).status == 200


async def test_wrong_methods_say_which_are_right(client: Client) -> None:
    answer = await client.call("POST", "/v2/a/manifests/x")
    assert answer.status == 405 and answer.code == "UNSUPPORTED"
    assert answer.headers["Allow"] == "GET, HEAD, PUT, DELETE"


async def test_preflight_is_answered_without_credentials(start: Start, tmp_path: object) -> None:
    client = await start(headers={"Access-Control-Allow-Origin": "*"})
    answer = await client.call("OPTIONS", "/v2/a/manifests/x", headers={"Origin": "http://ui"})
    assert answer.status == 200 and "PUT" in answer.headers["Access-Control-Allow-Methods"]


async def test_a_read_only_registry_takes_nothing(start: Start) -> None:
    client = await start(read_only=True)
    answer = await client.call("POST", "/v2/a/blobs/uploads/")
    assert (answer.status, answer.code) == (405, "UNSUPPORTED")
    client = await start(delete_enabled=False)
    assert (await client.call("DELETE", "/v2/a/manifests/x")).status == 405


async def test_a_path_prefix_is_taken_off(start: Start) -> None:
    client = await start(prefix="/registry/")
    assert (await client.call("GET", "/registry/v2/")).status == 200


async def test_addresses_in_answers_have_the_path_prefix(start: Start, users: Path) -> None:
    """A proxy hands on only what lies below the prefix."""
    client = await start(prefix="/registry/")
    upload = (await client.call("POST", "/registry/v2/a/blobs/uploads/")).headers["Location"]
    assert upload.startswith(f"{client.base}/registry/v2/a/blobs/uploads/")
    assert (await client.call("PATCH", upload, data=b"x")).status == 202
    for tag in ("v1", "v2"):
        await client.push_image("a", tag)
        await client.push_image("b", tag)
    for path in ("/v2/a/tags/list", "/v2/_catalog"):
        answer = await client.call("GET", f"/registry{path}?n=1")
        assert answer.headers["Link"].startswith(f"</registry{path}?")
    tokens = await start(prefix="/registry/", htpasswd=users, tokens=True)
    challenge = (await tokens.call("GET", "/registry/v2/")).headers["WWW-Authenticate"]
    assert f'realm="{tokens.base}/registry/auth/token"' in challenge
    assert (await tokens.call("GET", "/registry/auth/token")).status == 200


async def test_everything_is_refused_while_a_check_fails(client: Client) -> None:
    client.server.health.failing["storage"] = "gone"
    answer = await client.call("GET", "/v2/")
    assert (answer.status, answer.code) == (503, "UNAVAILABLE")
    assert (await client.call("GET", "/healthz")).status == 200
    client.server.health.failing.clear()
    assert (await client.call("GET", "/readyz")).status == 200


async def test_browsers_may_read_what_an_answer_says(start: Start) -> None:
    """The header's name comes in lower case from a variable (REGISTRY_HTTP_HEADERS_…)."""
    client = await start(headers={"access-control-allow-origin": "https://ui.example"})
    origin = {"Origin": "https://ui.example"}
    answer = await client.call("GET", "/v2/", headers=origin)
    assert "Docker-Content-Digest" in answer.headers["Access-Control-Expose-Headers"]
    answer = await client.call("OPTIONS", "/v2/a/manifests/x", headers=origin)
    assert "DELETE" in answer.headers["Access-Control-Allow-Methods"]
    own = {"Access-Control-Allow-Origin": "*", "access-control-expose-headers": "Link"}
    client.server.reload(replace(client.server.settings, headers=own))
    answer = await client.call("GET", "/v2/", headers=origin)
    assert answer.headers.getall("Access-Control-Expose-Headers") == ["Link"]
    plain = await start()
    assert "Access-Control-Expose-Headers" not in (await plain.call("GET", "/v2/", headers=origin)).headers


async def test_a_browser_can_log_in(start: Start, users: Path) -> None:
    origin = {"Origin": "https://ui.example"}
    client = await start(htpasswd=users, tokens=True, headers={"Access-Control-Allow-Origin": "https://ui.example"})
    refused = await client.call("GET", "/v2/a/tags/list", headers=origin)
    realm = refused.headers["WWW-Authenticate"].partition('realm="')[2].partition('"')[0]
    asked = await client.call("OPTIONS", realm, headers=origin)
    assert asked.status == 200 and "Authorization" in asked.headers["Access-Control-Allow-Headers"]
    answer = await client.call("GET", realm, headers=origin, auth=ANN)
    assert answer.json["token"] and answer.headers["Access-Control-Allow-Origin"] == "https://ui.example"


async def test_a_browser_may_send_conditions_and_see_etags(start: Start) -> None:
    client = await start(headers={"Access-Control-Allow-Origin": "*"})
    origin = {"Origin": "https://ui.example"}
    asked = await client.call("OPTIONS", "/v2/a/manifests/x", headers=origin)
    assert {"If-None-Match", "Range"} <= set(asked.headers["Access-Control-Allow-Headers"].split(", "))
    answer = await client.call("GET", "/v2/", headers=origin)
    exposed = answer.headers["Access-Control-Expose-Headers"].split(", ")
    assert {"ETag", "Content-Range", "OCI-Filters-Applied"} <= set(exposed)


async def test_answers_say_when_they_were_made(client: Client) -> None:
    digest = await client.push_image("a", "v1", b"layer")
    same = {"If-None-Match": f'"{digest}"'}
    answers = [
        await client.call("GET", "/v2/a/manifests/v1"),
        await client.call("GET", "/v2/a/manifests/v1", headers=same),
        await client.call("GET", f"/v2/a/blobs/{Digest.of(b'layer')}"),
        await client.call("GET", "/v2/a/manifests/none"),
    ]
    assert [answer.status for answer in answers] == [200, 304, 200, 404]
    for answer in answers:
        made = parsedate_to_datetime(answer.headers["Date"])
        assert abs((datetime.now(UTC) - made).total_seconds()) < 60


async def test_what_is_no_route_has_the_headers_of_every_answer(start: Start) -> None:
    client = await start(headers={"X-Content-Type-Options": "nosniff"})
    for path in ("/nope", "/v2/UPPER/manifests/1"):
        answer = await client.call("GET", path)
        assert answer.status == 404 and answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
