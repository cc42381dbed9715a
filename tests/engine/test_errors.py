"""The kinds, their statuses, and the sentences that clients look for."""

from __future__ import annotations

import errno
import os

import pytest

from engine import errors
from engine.errors import EngineError, os_words

STATUSES = {
    "NotModified": 304,
    "InvalidParameter": 400,
    "Unauthorized": 401,
    "Forbidden": 403,
    "NotFound": 404,
    "Conflict": 409,
    "SystemFailure": 500,
    "NotImplementedYet": 501,
    "Unavailable": 503,
}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/A/b"), "/A/b: no such file or directory"),
        (OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), b"/b"), "/b: file name too long"),
        (OSError(errno.EXDEV, os.strerror(errno.EXDEV), "/a", None, "/b"), "/a /b: invalid cross-device link"),
        (OSError(errno.EINVAL, "Mount of X: Invalid argument"), "Mount of X: Invalid argument"),
        (OSError(errno.EPERM, os.strerror(errno.EPERM)), "operation not permitted"),
        (OSError("As it is"), "As it is"),
        (ValueError("As it is"), "As it is"),
        (TimeoutError(), "TimeoutError"),
        (ExceptionGroup("tasks", [ExceptionGroup("more", [ValueError("why"), ValueError("else")])]), "why"),
    ],
)
def test_what_the_system_said(error: Exception, words: str) -> None:
    assert os_words(error) == words


def test_the_set_of_kinds_is_closed() -> None:
    assert {kind.__name__: kind.status for kind in EngineError.__subclasses__()} == STATUSES
    assert EngineError("why").status == 500
    assert (EngineError("why").message, str(EngineError("why"))) == ("why", "why")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (errors.no_such_container("web"), 404, "No such container: web"),
        (errors.no_such_exec("e1"), 404, "No such exec instance: e1"),
        (errors.no_such_image("busybox:1"), 404, "No such image: busybox:1"),
        (errors.no_such_network("front"), 404, "network front not found"),
        (errors.no_such_volume("data"), 404, "get data: no such volume"),
        (errors.not_running("abc"), 409, "container abc is not running"),
        (errors.is_paused("abc"), 409, "Container abc is paused, unpause the container before exec"),
        (errors.is_restarting("abc"), 409, "Container abc is restarting, wait until the container is running"),
        (
            errors.name_in_use("web", "abc"),
            409,
            (
                'Conflict. The container name "/web" is already in use by container "abc". '
                "You have to remove (or rename) that container to be able to reuse that name."
            ),
        ),
    ],
)
def test_sentences_read_like_dockerds(error: EngineError, status: int, message: str) -> None:
    assert (error.status, error.message) == (status, message)
