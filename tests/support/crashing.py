"""`berth serve` that kills itself at one step of the journal: ``python -m tests.support.crashing WHEN:N serve …``.

Counting begins when a file ``armed`` lies beside the journal. WHEN is ``before`` (the N-th transaction is not written)
or ``after`` (it is written, and nobody is told).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from cli.__main__ import main
from engine import journal


def install(when: str, number: int) -> None:
    """Make the journal kill this process at transaction ``number`` after arming."""
    count = 0
    write = journal.Journal._transaction_sync

    def counted(self: journal.Journal, jobs: Sequence[object], durable: bool) -> None:
        nonlocal count
        count += (self._path.parent / "armed").exists()
        if when == "before" and count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, jobs, durable)  # type: ignore[arg-type]
        if when == "after" and count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    journal.Journal._transaction_sync = counted  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    step, _, at = sys.argv.pop(1).partition(":")
    install(step, int(at))
    main()
