"""The conversation between the daemon, the zygote and the shims: one place that both sides import.

Who is who
    The *zygote* is a single-threaded interpreter that has imported what a shim needs and nothing else. It forks a shim
    per container start and reaps what ends. A *shim* is the parent of one container's init and of the processes exec'ed
    into it. The *daemon* decides everything and owns nothing that must outlive it.

How they talk
    Every connection is a SOCK_SEQPACKET unix socket; a packet is one JSON object, file descriptors travel beside it by
    SCM_RIGHTS. A request carries `id` and `op`; its answer carries the same `id` and either results or `error` (a
    sentence) with `kind` (the name of a built-in exception). What nobody asked for carries `event`. Large things (a
    process object, the shim's own settings) lie in files of the run folder, so a packet stays small.

    daemon -> zygote    hello; spawn {run_dir} + [control end, held descriptors...] -> {pid}; leave -> {leaving}
    zygote -> daemon    event shim_died {pid, status} when a shim has been reaped, however it ended
    daemon -> shim      hello -> whole state; hold + [fds]; run -> {init_pid}; attach {..} + [stream end];
                        prepare_exec, start_exec -> {pid}; exec_pids; kill, resize, truncate_log; discard
    shim -> daemon      event ready | failed {error} (once, on the control end handed over at the fork);
                        exec_exit {exec_id, exit_code}; oom; log_trouble {error}; exit {record}

    The control end handed over at the fork serves the daemon that spawned; any later daemon connects to `shim.sock` in
    the run folder, says hello and learns everything it missed. A shim serves any number of connections at a time. One
    that does not read its events is cut off: it must say hello again, and then knows the truth.

An attachment
    is one end of a stream socket pair, given to the shim. The shim writes the asked streams to it: for a terminal the
    raw bytes, else Docker's frames (`header`). What the peer writes is input. The peer's half-close ends its input, and
    the container's too where that was asked for (never on a terminal). A peer that closes outright ends it as well if
    the daemon lives on; the death of a daemon ends nobody's input. The shim's end-of-file means: the process has ended,
    all of its output has been sent, and the daemon was told of the exit before; the shim then swallows what is still
    typed until the peer closes, because a reset would cost the peer output it has not read. A peer that reads slowly is
    buffered, in memory first, then in an unlinked file, and cut off beyond 1 GiB; it never slows the container or the
    log.

What is promised after a crash
    * The daemon dies: nothing in a container notices. Logs stay complete, exits are recorded in `exit.json` (written
      and renamed before anyone is told), the last hundred exec exit codes are remembered until the container's end.
    * A shim ends only after `discard`, which ends the container first if it runs or is being started; until then an
      ended container's shim waits beside its record. A shim that no daemon talks to ends by itself if it was never told
      to run anything, or if its socket has gone from the run folder: nobody could find it again.
    * The host goes down without a daemon that would end the container: the shim does, when systemd has stopped all
      units and asks all processes to end (a SIGTERM at any other time is not heeded), and then ends itself.
    * The log holds everything the process wrote before its exit is told or recorded.
    * A shim is killed: the daemon sees its connection end and the zygote's `shim_died`; the container's processes can
      be found through their cgroup. Mounts live in the shim's and the container's mount namespaces only and go with
      them.
    * The zygote dies: shims go on; the next spawn starts another zygote.

Files of a run folder
    shim.json  settings, written by the daemon before the fork     shim.sock  control socket of this shim
    init.pid   written by the runtime                              exit.json  the exit record
    runtime.log  the runtime's last words                          exec-<id>.json  process object of an exec
"""

import array
import json
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Any

Message = dict[str, Any]

PROTOCOL = 1
MAX_PACKET = 192 * 1024  # below the default socket buffer, so that a packet always fits
MAX_DESCRIPTORS = 250  # the kernel's SCM_MAX_FD is 253
CONTROL_BUFFER = 1024 * 1024

SETTINGS_FILE = "shim.json"
SOCKET_FILE = "shim.sock"
EXIT_FILE = "exit.json"
PID_FILE = "init.pid"
LOG_FILE = "runtime.log"

STDOUT = 1
STDERR = 2

_ENCODER = json.JSONEncoder(separators=(",", ":"))
_HEADER = struct.Struct(">BxxxL")


def header(stream: int, length: int) -> bytes:
    """Docker's eight bytes before a chunk of a multiplexed stream: stream number, three zeroes, length."""
    return _HEADER.pack(stream, length)


def encode(message: Message) -> bytes:
    """One packet. ValueError when it would not fit."""
    packet = _ENCODER.encode(message).encode()
    if len(packet) > MAX_PACKET:
        raise ValueError(f"control message of {len(packet)} bytes exceeds {MAX_PACKET}")
    return packet


def send(sock: socket.socket, message: Message, descriptors: Sequence[int] = ()) -> None:
    """Send one packet; raises BlockingIOError on a full non-blocking socket (a packet is sent whole or not at all)."""
    ancillary: list[tuple[int, int, Any]] = []
    if descriptors:
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors)))
    sock.sendmsg([encode(message)], ancillary, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[Message | None, list[int]]:
    """One packet and its descriptors (ours to close); None at the end of the conversation."""
    packet, ancillary, _flags, _address = sock.recvmsg(
        MAX_PACKET, socket.CMSG_SPACE(MAX_DESCRIPTORS * 4), socket.MSG_CMSG_CLOEXEC
    )
    descriptors = received_descriptors(ancillary)
    if not packet:
        return None, descriptors
    message = json.loads(packet.decode())
    if not isinstance(message, dict):
        raise ValueError("control message is not an object")
    return message, descriptors


def received_descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that came beside a packet."""
    found: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
            found.extend(numbers)
    return found


def failure(error: BaseException) -> Message:
    """An exception as the fields of an answer; `exception` turns it back."""
    if isinstance(error, OSError) and error.errno is not None:
        path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None
        return {"error": error.strerror or os.strerror(error.errno), "errno": error.errno, "path": path}
    return {"error": str(error) or type(error).__name__, "kind": type(error).__name__}


def exception(message: Message) -> Exception:
    """The built-in exception that an answer's `error` and `kind`, or its `errno`, stand for."""
    if "errno" in message:
        return OSError(message["errno"], message["error"], message["path"])
    kinds: dict[str, type[Exception]] = {
        "ProcessLookupError": ProcessLookupError,
        "FileNotFoundError": FileNotFoundError,
        "FileExistsError": FileExistsError,
        "ValueError": ValueError,
        "KeyError": LookupError,
        "LookupError": LookupError,
    }
    return kinds.get(str(message.get("kind")), OSError)(str(message.get("error")))
