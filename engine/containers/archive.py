"""docker cp and docker export: the words and kinds of error that clients of the archive endpoints expect.

The work is done by ``engine.snapshots.archive``; a view says whether the container runs (its own mount namespace is
entered, so volumes are seen as it sees them) or not (its root, volumes and binds are mounted for the worker alone).
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator, Iterator

from engine.errors import Forbidden, InvalidParameter, NotFound, SystemFailure
from engine.snapshots.archive import Archives, PathStat
from engine.snapshots.base import ByteSource, RootView


class Archiver:
    """What the archive endpoints call. ``container`` is the name or ID that the client used, for messages."""

    def __init__(self, archives: Archives) -> None:
        self._archives = archives

    async def stat(self, view: RootView, path: str, container: str) -> PathStat:
        """``HEAD /containers/{id}/archive``."""
        with _worded(path, container):
            return await self._archives.stat(view, path)

    @contextlib.asynccontextmanager
    async def get(
        self, view: RootView, path: str, container: str
    ) -> AsyncIterator[tuple[PathStat, AsyncIterator[bytes]]]:
        """``GET /containers/{id}/archive``: the stat (known before the first byte) and the tar stream."""
        async with contextlib.AsyncExitStack() as stack:
            with _worded(path, container):
                found, chunks = await stack.enter_async_context(self._archives.get(view, path))
            yield found, _worded_chunks(chunks, path, container)

    async def put(
        self,
        view: RootView,
        path: str,
        body: ByteSource,
        container: str,
        *,
        no_overwrite_dir_non_dir: bool = False,
        owner: tuple[int, int] | None = None,
    ) -> None:
        """``PUT /containers/{id}/archive``; ``owner`` is who owns all of it when ``copyUIDGID`` was asked."""
        with _worded(path, container):
            await self._archives.put(view, path, body, keep_kinds=no_overwrite_dir_non_dir, owner=owner)

    @contextlib.asynccontextmanager
    async def export(self, view: RootView, container: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """``GET /containers/{id}/export``."""
        async with contextlib.AsyncExitStack() as stack:
            with _worded("/", container):
                chunks = await stack.enter_async_context(self._archives.export(view))
            yield _worded_chunks(chunks, "/", container)


async def _worded_chunks(chunks: AsyncIterator[bytes], path: str, container: str) -> AsyncIterator[bytes]:
    """Only the stream's own errors are worded: what the client's connection does to its reader passes through."""
    iterator = aiter(chunks)
    while True:
        with _worded(path, container):
            chunk = await anext(iterator, None)
        if chunk is None:
            return
        yield chunk


@contextlib.contextmanager
def _worded(path: str, container: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"Could not find the file {path} in container {container}") from error
    except NotADirectoryError as error:
        if error.filename is None:
            raise InvalidParameter(error.strerror or str(error)) from error
        raise SystemFailure(f"lstat {path}: not a directory") from error
    except OSError as error:
        if error.errno == errno.EROFS and error.filename is None:
            raise Forbidden(error.strerror or str(error)) from error
        raise SystemFailure(_sentence(error)) from error
    except ValueError as error:
        raise SystemFailure(str(error)) from error


def _sentence(error: OSError) -> str:
    words = (error.strerror or str(error)).lower()
    return f"{error.filename}: {words}" if error.filename else words
