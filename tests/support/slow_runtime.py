"""An OCI runtime that takes its time before it runs anything, for what may happen in the middle of a start."""

from __future__ import annotations

from pathlib import Path


def write_slow_runtime(script: Path, real: str, seconds: float) -> Path:
    """Make `script` do what the runtime `real` does, `run` that many seconds later."""
    script.write_text(f'#!/bin/sh\ncase " $* " in *" run "*) sleep {seconds};; esac\nexec {real} "$@"\n')
    script.chmod(0o755)
    return script
