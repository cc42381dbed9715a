"""What a shim's end depends on. The whole of it is tried with real runtimes in tests/system/test_shim.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.source_tree import PROJECT

PATIENT = """
import json, signal, socket, sys
from engine.shim import monitor, rehearsal, wire
from engine.shim.loop import wake_on
wake_on(signal.SIGCHLD)
monitor.LINGER_SECONDS = 0.5
with open(f"{sys.argv[1]}/{wire.SETTINGS_FILE}", "w") as file:
    json.dump(rehearsal._settings(sys.argv[1]), file)
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
client, stream = socket.socketpair()
shim = monitor.Monitor(monitor.invoke.load_settings(sys.argv[1]), [])
shim.prepare()
attach = {"stdin": False, "stdout": True, "stderr": True, "close_stdin_on_eof": False}
wire.send(ours, {"id": 1, "op": "attach", **attach}, [stream.fileno()])
stream.close()

def discard():
    for attachment in shim._stdio.attachments:
        attachment.push(wire.STDOUT, bytes(4 << 20))
        attachment.progress -= 100
    wire.send(ours, {"id": 2, "op": "discard"})
    shim._loop.after(0.1, read)

def read():
    received = 0
    client.settimeout(0.05)
    try:
        while data := client.recv(1 << 20):
            received += len(data)
    except TimeoutError:
        pass
    print(received > 0, len(shim._stdio.attachments))

shim._loop.after(0.1, discard)
shim.serve(theirs)
"""


def test_a_client_that_was_slow_before_the_discard_has_its_time_after_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PATIENT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=PROJECT, check=True)
    assert (done.stdout, done.stderr) == ("True 1\n", "")
