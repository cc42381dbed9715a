"""The closed set of error kinds of the engine, each with one HTTP status, and the wording docker's clients match on.

Services raise a kind with a sentence that names the object and the step. Lower layers raise built-in exceptions; the
service that can say something useful turns them into a kind and chains. ``api/middleware.py`` is the only place that
writes them to a client.
"""

from __future__ import annotations

import os


class EngineError(Exception):
    """A failure that a client is told of; ``status`` is the HTTP status of the Engine API."""

    status = 500

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message


class NotModified(EngineError):
    """The object is in the asked state already (304, sent without a body)."""

    status = 304


class InvalidParameter(EngineError):
    """The request itself is wrong (400)."""

    status = 400


class Unauthorized(EngineError):
    """Credentials are missing or wrong (401)."""

    status = 401


class Forbidden(EngineError):
    """The request is understood and not allowed (403)."""

    status = 403


class NotFound(EngineError):
    """The named object does not exist (404)."""

    status = 404


class Conflict(EngineError):
    """The object's state, or another object, forbids it (409)."""

    status = 409


class SystemFailure(EngineError):
    """The host or a helper process failed (500)."""

    status = 500


class NotImplementedYet(EngineError):
    """Docker's API has it, this engine does not offer it (501)."""

    status = 501


class Unavailable(EngineError):
    """Not now: not part of a swarm, or the daemon is stopping (503)."""

    status = 503


def os_words(error: BaseException) -> str:
    """What the system said, as Go's programs word it: ``/x: no such file or directory``; any other error as it is, of
    several at once the first."""
    if isinstance(error, BaseExceptionGroup):
        return os_words(error.exceptions[0])
    if not isinstance(error, OSError) or error.errno is None:
        return str(error) or type(error).__name__
    known = os.strerror(error.errno)
    words = known.lower() if error.strerror in (None, known) else error.strerror
    paths = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return ": ".join([" ".join(paths), words]) if paths else words


def no_such_container(name: str) -> NotFound:
    """The sentence docker's clients look for when a container is unknown."""
    return NotFound(f"No such container: {name}")


def no_such_exec(exec_id: str) -> NotFound:
    """The sentence for an unknown exec instance."""
    return NotFound(f"No such exec instance: {exec_id}")


def no_such_image(reference: str) -> NotFound:
    """The sentence that makes the docker CLI pull: it looks for ``No such image``."""
    return NotFound(f"No such image: {reference}")


def no_such_network(name: str) -> NotFound:
    """The sentence for an unknown network."""
    return NotFound(f"network {name} not found")


def no_such_volume(name: str) -> NotFound:
    """The sentence for an unknown volume (docker: ``get NAME: no such volume``)."""
    return NotFound(f"get {name}: no such volume")


def name_in_use(name: str, container_id: str) -> Conflict:
    """The sentence for a container name that is taken."""
    return Conflict(
        f'Conflict. The container name "/{name}" is already in use by container "{container_id}". '
        "You have to remove (or rename) that container to be able to reuse that name."
    )


def not_running(container_id: str) -> Conflict:
    """The sentence for an operation that needs a running container."""
    return Conflict(f"container {container_id} is not running")


def is_paused(reference: str) -> Conflict:
    """The sentence for exec and friends on a paused container, which is named as the client named it."""
    return Conflict(f"Container {reference} is paused, unpause the container before exec")


def is_restarting(container_id: str) -> Conflict:
    """The sentence for an operation on a container between two runs."""
    return Conflict(f"Container {container_id} is restarting, wait until the container is running")
