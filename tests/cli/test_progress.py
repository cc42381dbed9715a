from __future__ import annotations

import io

import pytest

from cli.client import ApiError
from cli.progress import show


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_output_has_one_line_for_each_step_and_no_percentages() -> None:
    out = io.StringIO()
    show(
        [
            {"status": "Pulling from library/x", "id": "latest"},
            {"status": "Downloading", "id": "abc", "progressDetail": {"current": 5, "total": 10}},
            {"status": "Pull complete", "id": "abc", "progressDetail": {}},
            {"status": "Digest: sha256:00"},
        ],
        out,
    )
    assert out.getvalue() == "latest: Pulling from library/x\nabc: Pull complete\nDigest: sha256:00\n"


def test_a_terminal_rewrites_the_line_of_a_layer() -> None:
    out = _Terminal()
    show([{"status": "Waiting", "id": "a"}, {"status": "Downloading", "id": "b"}, {"status": "Done", "id": "a"}], out)
    assert out.getvalue().endswith("\x1b[2A\x1b[2K\ra: Done\r\x1b[2B")


def test_an_error_in_the_stream_is_raised() -> None:
    with pytest.raises(ApiError, match="no space"):
        show([{"errorDetail": {"message": "no space"}, "error": "no space"}], io.StringIO())


def test_aux_documents_are_returned_and_quiet_prints_nothing() -> None:
    out = io.StringIO()
    assert show([{"aux": {"ID": "x"}}, {"status": "y"}], out, quiet=True) == [{"ID": "x"}]
    assert out.getvalue() == ""
