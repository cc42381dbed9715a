"""Frames come off however the stream is cut."""

from __future__ import annotations

import pytest

from engine.api.websocket import Unframer


def frame(kind: int, data: bytes) -> bytes:
    return bytes([kind, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


STREAM = frame(1, b"out") + frame(2, b"") + frame(2, b"error") + frame(1, b"x" * 300)


@pytest.mark.parametrize("step", [1, 2, 7, 8, 9, 64, len(STREAM)])
def test_the_content_of_all_frames(step: int) -> None:
    unframer = Unframer()
    parts = [unframer.feed(STREAM[at : at + step]) for at in range(0, len(STREAM), step)]
    assert b"".join(parts) == b"outerror" + b"x" * 300


def test_content_is_not_held_back_until_its_frame_is_whole() -> None:
    assert Unframer().feed(frame(1, b"hello")[:-2]) == b"hel"
