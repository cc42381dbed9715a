"""Asks a daemon `GET /_ping` until standard input ends, and prints the 99th percentile in ms: a process of its own, so
that what loads the daemon does not slow the clock.

python -m benchmarks.pings SOCKET
"""

from __future__ import annotations

import select
import socket
import sys
import time

PAUSE_SECONDS = 0.002


def ping(path: str) -> float:
    """One request on a connection of its own; its milliseconds."""
    begun = time.perf_counter()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(b"GET /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
        answer = connection.recv(4096)
        took = (time.perf_counter() - begun) * 1000
    if b" 200 " not in answer:
        raise RuntimeError(f"not a ping's answer: {answer[:100]!r}")
    return took


def main(path: str) -> None:
    """Ping until nobody holds our standard input."""
    took = []
    while not select.select([sys.stdin], [], [], PAUSE_SECONDS)[0]:
        took.append(ping(path))
    print(sorted(took)[int(len(took) * 0.99)])


if __name__ == "__main__":
    main(sys.argv[1])
