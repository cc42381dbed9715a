"""What the daemon and systemd tell each other: that the daemon serves, and whether the whole host is about to stop."""

import contextlib
import os
import socket

from engine.runtime.cgroups import SYSTEMD_RUNS
from engine.runtime.oci import run_program

ANSWER_SECONDS = 5.0


async def host_is_stopping() -> bool:
    """Whether systemd is taking the host down; False where something else would, or where it does not say."""
    if not os.path.isdir(SYSTEMD_RUNS):
        return False
    with contextlib.suppress(OSError, TimeoutError):
        _code, state, _errors = await run_program(["systemctl", "is-system-running"], ANSWER_SECONDS)
        return state.strip() == "stopping"
    return False


def tell_service_manager_sync(state: str) -> None:
    """Say `READY=1` or the like to whoever started us, if it listens (sd_notify(3)); a lost word is no failure."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as wire:
        wire.connect("\0" + address[1:] if address.startswith("@") else address)
        wire.send(state.encode())
