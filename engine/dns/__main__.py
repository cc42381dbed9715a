"""Entry point of the name server process: ``main()`` its argument is the descriptor of its control socket."""

from __future__ import annotations

import signal
import socket
import sys

from engine.dns.server import Server


def main() -> None:
    """Serve until no container and no daemon is left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as control:
        Server(control).run()


if __name__ == "__main__":
    main()
