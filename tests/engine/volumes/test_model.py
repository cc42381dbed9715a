"""Volume names, options and mounts."""

from __future__ import annotations

import pytest

from engine.volumes.model import (
    ANONYMOUS_LABEL,
    MountRequest,
    Volume,
    check_name,
    check_options,
    mount_request,
    nfs_server,
    size_limit,
    with_server_address,
)


@pytest.mark.parametrize("name", ["ab", "a.b_c-d", "0" * 64])
def test_good_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a", "volume name is too short"),
        ("/x", '"/x" includes invalid characters'),
        ("a b", "use absolute path"),
        (".a", ""),
    ],
)
def test_bad_names(name: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_name(name)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"foo": "1"}, 'invalid option: "foo"'),
        ({"type": "tmpfs"}, 'missing required option: "device"'),
        ({"device": "tmpfs"}, 'missing required option: "type"'),
        ({"o": "x"}, 'missing required option: "device"'),
        ({"size": "1m"}, "quota size requested but no quota support"),
    ],
)
def test_bad_options(options: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_options(options)


def test_good_options() -> None:
    check_options({})
    check_options({"type": "tmpfs", "device": "tmpfs", "o": "size=1m"})
    check_options({"size": "1m"}, quota=True)
    check_options({"size": "0"})


@pytest.mark.parametrize(
    ("size", "limit"), [("1m", 1 << 20), ("2GiB", 2 << 30), ("1.5 kb", 1536), ("7", 7), ("0", None)]
)
def test_sizes(size: str, limit: int | None) -> None:
    assert size_limit({"size": size}) == limit


def test_a_bad_size() -> None:
    with pytest.raises(ValueError, match="invalid size: 'much'"):
        check_options({"size": "much"})
    assert size_limit({}) is None


def test_what_a_volume_is() -> None:
    plain = Volume(name="v", created_at=1)
    assert not plain.needs_mount
    assert not plain.is_anonymous
    other = Volume(name="v", created_at=1, labels={ANONYMOUS_LABEL: ""}, options={"device": "x", "type": "y"})
    assert other.needs_mount
    assert other.is_anonymous


def test_mounts_of_options() -> None:
    request = mount_request({"type": "nfs", "device": ":/export", "o": "addr=server,rw,,nolock"})
    assert request == MountRequest(":/export", "nfs", ("addr=server", "rw", "nolock"))
    assert nfs_server(request) == "server"
    assert with_server_address(request, "192.0.2.1").options == ("addr=192.0.2.1", "rw", "nolock")
    assert nfs_server(mount_request({"type": "none", "device": "/x", "o": "bind"})) is None
    assert nfs_server(mount_request({"type": "cifs", "device": "//x/y"})) is None
