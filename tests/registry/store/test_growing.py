import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.digest import new_hasher
from registry.store.growing import GrowingFile


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 400_000), min_size=1, max_size=6))
async def test_any_sequence_of_appends_gives_the_same_bytes(tmp_path: Path, sizes: list[int]) -> None:
    path = tmp_path / "data"
    path.unlink(missing_ok=True)
    file = GrowingFile.open_sync(str(path))
    hasher, expected = new_hasher(), b""
    for size in sizes:
        chunk = os.urandom(size)
        expected += chunk
        await file.write([chunk[: size // 3], chunk[size // 3 :]], hasher)
        assert file.size == len(expected)
    await file.close()
    assert path.read_bytes() == expected


async def test_a_file_system_that_refuses_direct_writes_is_served_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, refused = os.write, []

    def write(descriptor: int, data: memoryview) -> int:
        if not refused:
            refused.append(1)
            raise OSError(errno.EINVAL, "Invalid argument")
        return original(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    file = GrowingFile.open_sync(str(tmp_path / "data"))
    await file.write([b"x" * 300_001])
    await file.close()
    assert refused and (tmp_path / "data").read_bytes() == b"x" * 300_001


async def test_a_full_disk_is_an_error_and_closing_still_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = GrowingFile.open_sync(str(tmp_path / "data"))
    monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(OSError, match="No space"):
        await file.write([b"x" * 200_000])
    await file.close()
    assert file.size == 0
