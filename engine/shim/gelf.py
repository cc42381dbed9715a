"""The gelf driver: JSON messages, chunked and compressed over UDP, ended by a zero byte over TCP."""

import json
import os
import time
import zlib
from typing import Any

from engine.shim import wire
from engine.shim.logqueue import Message, Sink
from engine.shim.sinks import Connection

CHUNK = 1420 - 12  # what a datagram of the usual size leaves beside the chunk's header
MOST_CHUNKS = 128
_ERROR, _INFO = 3, 6
_WINDOW = {"gzip": 31, "zlib": 15}


class Gelf(Sink):
    """UDP needs nobody at the other end; TCP connects at once and is made again a few times."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._hostname = settings["hostname"]
        self._extra = settings["extra"]
        self._compression = settings["compression"]
        self._level = int(settings["level"])
        self._reconnects = int(settings["reconnects"])
        self._delay = float(settings["delay"])
        self._connection = Connection(settings["network"], settings["address"])
        try:
            self._connection.connect()
        except OSError as error:
            raise OSError(f"gelf: cannot connect to GELF endpoint: {settings['address']} {error}") from error

    def send(self, messages: list[Message]) -> None:
        documents = [self._document(message) for message in messages if message[2]]
        if not self._connection.keeps_bounds:
            if documents:
                self._send_stream(b"".join(document + b"\0" for document in documents))
            return
        for document in documents:
            for datagram in chunks(compressed(document, self._compression, self._level)):
                self._connection.send(datagram)

    def close(self) -> None:
        self._connection.finish()

    def _document(self, message: Message) -> bytes:
        at, stream, line, _partial = message
        document = {
            "version": "1.1",
            "host": self._hostname,
            "short_message": line.decode("utf-8", "replace"),
            "timestamp": at // 10**6 / 1000,
            "level": _ERROR if stream == wire.STDERR else _INFO,
            **self._extra,
        }
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()

    def _send_stream(self, data: bytes) -> None:
        for attempt in range(self._reconnects + 1):
            try:
                self._connection.send(data)
                return
            except OSError:
                if attempt == self._reconnects:
                    raise
                time.sleep(self._delay)


def compressed(document: bytes, kind: str, level: int) -> bytes:
    """`kind` is gzip, zlib or none."""
    if kind == "none":
        return document
    compressor = zlib.compressobj(level, zlib.DEFLATED, _WINDOW[kind])
    return compressor.compress(document) + compressor.flush()


def chunks(data: bytes) -> list[bytes]:
    """The datagrams of one message. OSError for one of more than 128 chunks, which no server takes."""
    if len(data) <= CHUNK + 12:
        return [data]
    parts = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    if len(parts) > MOST_CHUNKS:
        raise OSError(f"msg too large, would need {len(parts)} chunks")
    head = b"\x1e\x0f" + os.urandom(8)
    return [head + bytes((number, len(parts))) + part for number, part in enumerate(parts)]
