"""mount(8) words to mount(2) flags."""

from __future__ import annotations

import pytest

from engine.kernel import mount


@pytest.mark.parametrize(
    ("words", "flags", "propagation", "data"),
    [
        ((), 0, 0, ""),
        (("ro", "nosuid", "mode=755", "size=64k"), mount.MS_RDONLY | mount.MS_NOSUID, 0, "mode=755,size=64k"),
        (("ro", "rw"), 0, 0, ""),
        (("noexec", "exec", "defaults"), 0, 0, ""),
        (("rbind", "rslave"), mount.MS_BIND | mount.MS_REC, mount.MS_SLAVE | mount.MS_REC, ""),
        (("lowerdir=a:b", "", "volatile"), 0, 0, "lowerdir=a:b,volatile"),
    ],
)
def test_words(words: tuple[str, ...], flags: int, propagation: int, data: str) -> None:
    assert mount.split_options(words) == (flags, propagation, data)
