import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.digest import Digest, InvalidDigest, Verifier, new_hasher

EMPTY = "sha256:" + hashlib.sha256(b"").hexdigest()


def test_a_digest_is_text_with_two_parts() -> None:
    digest = Digest.parse(EMPTY)
    assert digest == EMPTY
    assert (digest.algorithm, digest.encoded) == ("sha256", EMPTY[7:])
    assert Digest.parse(digest) is digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        "sha256:abc",
        "sha256:" + "g" * 64,
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 65,
        "sha256:" + "a" * 64 + "\n",
        "md5:" + "a" * 32,
        "sha384:" + "a" * 96,
        "sha512:" + "a" * 64,
        "../../etc:passwd",
        "sha256:../" + "a" * 61,
    ],
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidDigest):
        Digest.parse(text)


@given(st.binary(max_size=2000), st.sampled_from(["sha256", "sha512"]))
def test_content_verifies_against_its_own_digest_only(data: bytes, algorithm: str) -> None:
    digest = Digest.of(data, algorithm)
    assert Digest.parse(str(digest)) == digest
    right, wrong = Verifier(digest), Verifier(digest)
    right.update(data)
    wrong.update(data + b"x")
    assert right.verified() and right.actual == digest
    assert not wrong.verified()


def test_hashers_exist_for_known_algorithms_only() -> None:
    with pytest.raises(InvalidDigest, match="md5"):
        new_hasher("md5")
