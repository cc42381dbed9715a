"""Careful ways to read a request's body: in batches, with an end for clients that fall silent, and with a limit."""

from __future__ import annotations

import asyncio

from aiohttp import ClientPayloadError
from aiohttp.web_protocol import RequestPayloadError
from aiohttp.web_request import BaseRequest

from registry import errors
from registry.errors import RegistryError

BODY_STALL_SECONDS = 60.0
BODY_PAUSE_SECONDS = 0.5


class Body:
    """The body of a request, in batches. A client that is silent for a minute is given up."""

    __slots__ = ("_begun", "_broken", "_content", "_request")

    def __init__(self, request: BaseRequest) -> None:
        self._request = request
        self._content = request.content
        self._begun = False
        self._broken: Exception | None = None

    async def next(self, batch_bytes: int) -> list[bytes]:
        """The next batch of about `batch_bytes`, empty at the end; ConnectionResetError when the body broke off.

        What arrived before the break is handed out first, so that an upload can be resumed behind it.
        """
        if not self._begun:
            self._begun = True
            send_continue(self._request)
        if self._broken is not None:
            raise ConnectionResetError("the body ended early") from self._broken
        batch: list[bytes] = []
        size = 0
        try:
            while size < batch_bytes:
                try:
                    async with asyncio.timeout(BODY_PAUSE_SECONDS if batch else BODY_STALL_SECONDS):
                        chunk = await self._content.readany()
                except TimeoutError:
                    if batch:
                        break  # what a slow client has sent so far goes to disk, where it survives us
                    raise
                if not chunk:
                    break
                batch.append(chunk)
                size += len(chunk)
        except (OSError, ClientPayloadError, RequestPayloadError) as error:
            self._broken = error
            if not batch:
                raise ConnectionResetError("the body ended early") from error
        return batch


async def read_body(request: BaseRequest, limit: int) -> bytes:
    """The whole body, or 413 when it is longer than `limit` bytes."""
    too_large = RegistryError(errors.MANIFEST_TOO_LARGE, message=f"the manifest is larger than {limit} bytes")
    if request.content_length is not None and request.content_length > limit:
        raise too_large
    if request.content.is_eof() and request.content.exception() is None:
        # It came with the head of the request, as most do: there is nothing to wait for.
        whole = request.content.read_nowait()
        if len(whole) > limit:
            raise too_large
        return whole
    pieces: list[bytes] = []
    size = 0
    body = Body(request)
    while batch := await body.next(1 << 16):
        pieces += batch
        size += sum(map(len, batch))
        if size > limit:
            raise too_large
    return b"".join(pieces)


def send_continue(request: BaseRequest) -> None:
    """Answer `Expect: 100-continue`, now that the request was found acceptable."""
    expect = request.headers.get("Expect")
    if expect is not None and expect.lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
