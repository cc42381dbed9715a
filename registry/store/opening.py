"""Which driver a configuration asks for."""

from __future__ import annotations

from registry.config import Settings
from registry.store.driver import StorageDriver
from registry.store.filesystem import FilesystemDriver


def open_driver(settings: Settings) -> StorageDriver:
    """The storage driver of these settings. The S3 driver is loaded only where it is used."""
    if settings.s3 is not None:
        from registry.store.s3 import S3Driver

        return S3Driver.connect(settings.s3, settings.collect_grace_seconds)
    return FilesystemDriver(settings.root)
