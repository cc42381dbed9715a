"""Chain IDs and digests as folder names."""

from __future__ import annotations

import hashlib

import pytest

from engine.snapshots.base import chain_id, hex_of

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def test_chain_ids_follow_the_image_specification() -> None:
    assert chain_id([]) == ""
    assert chain_id([A]) == A
    both = "sha256:" + hashlib.sha256(f"{A} {B}".encode()).hexdigest()
    assert chain_id([A, B]) == both
    assert chain_id([A, B, A]) == "sha256:" + hashlib.sha256(f"{both} {A}".encode()).hexdigest()


@pytest.mark.parametrize(
    "bad", ["", "sha256:", "sha256:" + "A" * 64, "sha512:" + "a" * 64, "sha256:../" + "a" * 61, "a" * 64]
)
def test_only_a_digest_becomes_a_folder_name(bad: str) -> None:
    assert hex_of(A) == "a" * 64
    with pytest.raises(ValueError, match="invalid layer digest"):
        hex_of(bad)
