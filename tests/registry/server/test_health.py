from pathlib import Path

import pytest

from registry.config import Settings
from registry.server.health import Health
from registry.store.filesystem import FilesystemDriver


async def test_a_sign_of_the_administrators_is_seen(tmp_path: Path) -> None:
    sign = tmp_path / "maintenance"
    health = Health(Settings(root=tmp_path, health_files=(sign,)), FilesystemDriver(tmp_path))
    await health.look()
    assert health.has_checks and health.failing == {}
    sign.touch()
    await health.look()
    assert health.failing == {str(sign): "file exists"}
    sign.unlink()
    await health.look()
    assert health.failing == {}


async def test_a_storage_counts_as_failed_after_so_many_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(root=tmp_path, storage_check_seconds=1.0, storage_check_threshold=3)
    driver = FilesystemDriver(tmp_path)
    health = Health(settings, driver)
    write = driver.write

    async def fail(path: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(driver, "write", fail)
    for expected in (set(), set(), {"storagedriver"}):
        await health.look()
        assert set(health.failing) == expected
    assert "No space left" in health.failing["storagedriver"]
    monkeypatch.setattr(driver, "write", write)
    await health.look()
    assert health.failing == {}
