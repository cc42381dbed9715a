"""Servers that a test plays: connections on a loopback port, served one after the other."""

from __future__ import annotations

import contextlib
import socket
import threading


class Listener:
    """Accepts until it is closed; what a connection is for, its kind says in ``serve``."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), connection:
                self.serve(connection)

    def serve(self, connection: socket.socket) -> None:
        """Talk to one client; ``OSError`` ends it."""
        raise NotImplementedError

    def close(self) -> None:
        """Accept nobody any more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
