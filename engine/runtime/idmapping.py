"""Whether this kernel, with the data root's file system, can show containers files under other ids than they have.

Asked of the kernel by really doing it, with the code that shims will do it with, in a process of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from engine.kernel.idmap import IdMap, user_namespace_sync
from engine.shim import wire

PROBE_SECONDS = 20.0
_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from engine.shim import idmap
try:
    idmap.probe(*sys.argv[2:])
except OSError as error:
    sys.exit(error.strerror or str(error))
"""


def check_idmapping_sync(data_root: Path, exec_root: Path, ids: IdMap, driver: str) -> None:
    """Raises ``OSError`` that says why ``userns-remap`` cannot be had."""
    _check_way_sync(exec_root, ids)
    folder = tempfile.mkdtemp(prefix="probe-", dir=data_root)
    namespace = user_namespace_sync(ids)
    try:
        source = str(Path(wire.__file__).parents[2])
        mapping = f"/proc/{os.getpid()}/fd/{namespace}"
        command = [sys.executable, "-I", "-S", "-c", _PROGRAM, source, folder, mapping, driver]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    finally:
        os.close(namespace)
        shutil.rmtree(folder, ignore_errors=True)
    if done.returncode:
        words = done.stderr.strip().rpartition("\n")[2]
        raise OSError(
            f"userns-remap cannot be had with {data_root}: its file system and this kernel (5.19 or newer is needed) "
            f"cannot map the ids of files: {words}"
        )


def _check_way_sync(exec_root: Path, ids: IdMap) -> None:
    """Container root can reach its root file system, which lies below the exec root. Raises ``OSError``."""
    uid, gid = ids.root
    for folder in (*reversed(exec_root.parents), exec_root):
        info = folder.stat()
        bit = 0o100 if info.st_uid == uid else 0o010 if info.st_gid == gid else 0o001
        if not info.st_mode & bit:
            raise PermissionError(
                f"a subdirectory in your exec-root path ({exec_root}) restricts access to the remapped root uid/gid; "
                f"please fix by allowing 'o+x' permissions on existing directories: {folder}"
            )
