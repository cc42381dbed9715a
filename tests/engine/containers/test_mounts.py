"""Binds, mounts, volumes-from and tmpfs: grammar, errors, precedence."""

from __future__ import annotations

import pytest

from engine.containers.mounts import (
    MountPoint,
    by_depth,
    clean,
    is_valid_mode,
    missing_source,
    near_root,
    needs_source,
    parse_bind,
    parse_mount,
    parse_volumes_from,
    plan_mounts,
    tmpfs_data,
    tmpfs_options,
    with_volume,
)
from engine.containers.settings import (
    BindOptions,
    ContainerConfig,
    DriverConfig,
    HostConfig,
    ImageOptions,
    Mount,
    TmpfsOptions,
    VolumeOptions,
)


def test_a_bind_with_a_path_is_a_bind() -> None:
    point = parse_bind("/src/:/dst//x/:ro,rslave")
    assert (point.type, point.source, point.destination) == ("bind", "/src", "/dst/x")
    assert (point.rw, point.propagation, point.mode) == (False, "rslave", "ro,rslave")
    assert point.create_source
    assert not needs_source(point)


def test_a_bind_with_a_name_is_a_volume() -> None:
    point = parse_bind("data:/dst:nocopy", "special")
    assert (point.type, point.name, point.driver, point.copy_data) == ("volume", "data", "special", False)
    assert parse_bind("data:/dst").copy_data
    anonymous = parse_bind("/dst")
    assert (anonymous.type, anonymous.name, anonymous.destination) == ("volume", "", "/dst")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "invalid volume specification: ''"),
        (":/x", "invalid volume specification: ':/x'"),
        ("a:b:c:d", "invalid volume specification: 'a:b:c:d'"),
        ("/x:rw", "invalid volume specification: '/x:rw'"),
        ("/a:/b:wrong", "invalid mode: wrong"),
        ("/a:/b:ro,rw", "invalid mode: ro,rw"),
        ("/a:b", "invalid volume specification: '/a:b': invalid mount config for type \"bind\": invalid mount path"),
        ("/a:/", "invalid specification: destination can't be '/'"),
        ("data:/x:rshared", "must not be specified"),
    ],
)  # fmt: skip
def test_bad_binds(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_bind(text)
    assert words in str(caught.value)


def test_long_forms() -> None:
    bind = parse_mount(Mount(type="bind", source="/s", target="/t", read_only=True))
    assert (bind.rw, bind.propagation, needs_source(bind)) == (False, "rprivate", True)
    assert not needs_source(
        parse_mount(Mount(type="bind", source="/s", target="/t", bind_options=BindOptions(create_mountpoint=True)))
    )
    options = VolumeOptions(no_copy=True, driver_config=DriverConfig(name="local"), subpath="a/b")
    volume = parse_mount(Mount(type="volume", source="v", target="/t", volume_options=options))
    assert (volume.name, volume.driver, volume.copy_data) == ("v", "local", False)
    image = parse_mount(Mount(type="image", source="busybox", target="/t", image_options=ImageOptions(subpath="bin")))
    assert (image.name, image.rw) == ("busybox", False)
    assert parse_mount(Mount(type="tmpfs", target="/t")).destination == "/t"
    assert str(missing_source(bind)).endswith("bind source path does not exist: /s")


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (Mount(type="what", target="/t"), 'invalid mount config for type "what": mount type unknown'),
        (Mount(type="bind", source="/s"), "field Target must not be empty"),
        (Mount(type="bind", target="/t"), "field Source must not be empty"),
        (Mount(type="bind", source="s", target="/t"), "invalid mount path: 's' mount path must be absolute"),
        (Mount(type="bind", source="/s", target="t"), "invalid mount path: 't' mount path must be absolute"),
        (Mount(type="bind", source="/s", target="/a/.."), "destination can't be '/'"),
        (
            Mount(type="bind", source="/s", target="/t", volume_options=VolumeOptions()),
            "field VolumeOptions must not be",
        ),
        (Mount(type="volume", target="/t", bind_options=BindOptions()), "field BindOptions must not be specified"),
        (
            Mount(type="bind", source="/s", target="/t", bind_options=BindOptions(propagation="x")),
            "invalid propagation mode: x",
        ),
        (
            Mount(type="bind", source="/s", target="/t", bind_options=BindOptions(read_only_non_recursive=True)),
            "!ReadOnly && BindOptions.ReadOnlyNonRecursive",
        ),
        (
            Mount(type="bind", source="/s", target="/t", bind_options=BindOptions(read_only_force_recursive=True)),
            "!ReadOnly && BindOptions.ReadOnlyForceRecursive",
        ),
        (
            Mount(
                type="bind",
                source="/s",
                target="/t",
                read_only=True,
                bind_options=BindOptions(read_only_non_recursive=True, read_only_force_recursive=True),
            ),
            "ReadOnlyNonRecursive && BindOptions.ReadOnlyForceRecursive",
        ),
        (Mount(type="volume", target="/t", read_only=True), "must not set ReadOnly mode when using anonymous volumes"),
        (Mount(type="volume", target="/t", volume_options=VolumeOptions(subpath="a")), "must not set Subpath"),
        (
            Mount(type="volume", source="v", target="/t", volume_options=VolumeOptions(subpath="../a")),
            "subpath must be a relative path within the volume",
        ),
        (Mount(type="tmpfs", source="x", target="/t"), "field Source must not be specified"),
        (Mount(type="image", target="/t"), "field Source must not be empty"),
        (
            Mount(type="image", source="i", target="/t", image_options=ImageOptions(subpath="/a")),
            "relative path within the image",
        ),
    ],
)
def test_bad_long_forms(mount: Mount, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_mount(mount)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "valid"),
    [("", True), ("ro,z,cached,rprivate,nocopy", True), ("z,Z", False), ("shared,slave", False), ("ro,", False)],
)
def test_modes(mode: str, valid: bool) -> None:
    assert is_valid_mode(mode) is valid


def test_volumes_from() -> None:
    assert parse_volumes_from("c") == ("c", "rw")
    assert parse_volumes_from("c:ro") == ("c", "ro")
    for text in ("", "c:what", "c:nocopy", "c:rshared"):
        with pytest.raises(ValueError, match="invalid mode|cannot be empty"):
            parse_volumes_from(text)


def test_precedence_and_inheritance() -> None:
    theirs = (
        MountPoint(type="volume", destination="/data", name="d", source="/v/d", mode="z", copy_data=True),
        MountPoint(type="bind", destination="/b", source="/b", rw=False),
    )
    host = HostConfig(volumes_from=("c:ro", "e"), binds=("/host:/b",), tmpfs={"/run": ""})
    config = ContainerConfig(volumes={"/data": {}, "/own/": {}, "/run": {}})
    points = {p.destination: p for p in plan_mounts(config, host, {"c:ro": theirs})}
    assert set(points) == {"/data", "/b", "/own"}
    assert (points["/data"].rw, points["/data"].copy_data, points["/data"].name) == (False, False, "d")
    assert points["/data"].mode == ""
    assert (points["/b"].source, points["/b"].rw) == ("/host", True)
    assert (points["/own"].type, points["/own"].name, points["/own"].copy_data) == ("volume", "", True)


@pytest.mark.parametrize(
    "host",
    [
        HostConfig(binds=("/a:/x", "/b:/x/")),
        HostConfig(binds=("/a:/x",), mounts=(Mount(type="tmpfs", target="/x"),)),
        HostConfig(binds=("/a:/x",), tmpfs={"/x": ""}),
    ],
)
def test_two_mounts_on_one_place_are_refused(host: HostConfig) -> None:
    with pytest.raises(ValueError, match="Duplicate mount point: /x"):
        plan_mounts(ContainerConfig(), host)


def test_a_mount_may_lie_where_a_tmpfs_hides_it() -> None:
    host = HostConfig(mounts=(Mount(type="tmpfs", target="/x"),), tmpfs={"/x": ""})
    assert [point.destination for point in plan_mounts(ContainerConfig(), host)] == ["/x"]


def test_tmpfs_of_the_long_form() -> None:
    assert tmpfs_data(None) == ""
    assert tmpfs_data(None, read_only=True) == "ro"
    options = TmpfsOptions(size_bytes=1 << 20, mode=0o1770, options=(("noexec",), ("uid", "5")))
    assert tmpfs_data(options) == "mode=1770,size=1m,noexec,uid=5"
    assert tmpfs_data(TmpfsOptions(size_bytes=1025)) == "size=1025"
    for bad in ((("what",),), (("a", "b", "c"),)):
        with pytest.raises(ValueError, match="invalid option"):
            tmpfs_data(TmpfsOptions(options=bad))


def test_tmpfs_words_replace_their_opposites() -> None:
    assert tmpfs_options("") == ["noexec", "nosuid", "nodev", "rprivate"]
    assert tmpfs_options("exec,size=1m,size=2m,ro,rw,shared,defaults") == [
        "nosuid", "nodev", "exec", "size=2m", "rw", "shared",
    ]  # fmt: skip
    for word, quoted in (("what", '["what"]'), ("a=b=c", '["a" "b=c"]')):
        with pytest.raises(ValueError) as caught:
            tmpfs_options(word)
        assert str(caught.value) == f"invalid tmpfs option {quoted}"


def test_a_volume_that_exists_now() -> None:
    point = with_volume(parse_bind("abc:/dst"), "abc", "local", "/v/abc/_data")
    assert (point.name, point.driver, point.source, point.mode) == ("abc", "local", "/v/abc/_data", "z")
    assert with_volume(parse_mount(Mount(type="volume", target="/dst")), "abc", "local", "/v").mode == "z"
    (nameless,) = plan_mounts(ContainerConfig(volumes={"/dst": {}}), HostConfig())
    assert with_volume(nameless, "abc", "local", "/v").mode == ""
    assert with_volume(parse_bind("v:/dst:ro"), "v", "other", "/v").mode == "ro"


def test_shallow_places_come_first() -> None:
    points = [MountPoint(type="tmpfs", destination=d) for d in ("/a/b/c", "/a", "/a/b")]
    assert [p.destination for p in by_depth(points)] == ["/a", "/a/b", "/a/b/c"]
    assert clean("//a/./b/") == "/a/b"


@pytest.mark.parametrize(
    ("text", "propagation"),
    [
        ("/srv/berth/x:/a", "rslave"),
        ("/:/a", "rslave"),
        ("/srv/berth:/a:rshared", "rshared"),
        ("/srv/other:/a", "rprivate"),
        ("/srv/other:/a:shared", "shared"),
    ],
)
def test_binds_near_the_daemons_folder_follow_it(text: str, propagation: str) -> None:
    assert near_root(parse_bind(text), "/srv/berth").propagation == propagation


def test_binds_near_the_daemons_folder_may_not_hold_it() -> None:
    with pytest.raises(ValueError, match='must use either propagation mode "rslave" or "rshared"'):
        near_root(parse_bind("/srv/berth/x:/a:rprivate"), "/srv/berth")


def test_a_flat_read_only_bind_leaves_what_is_mounted_below() -> None:
    flat = near_root(parse_bind("/x:/a:ro"), "/srv/berth", flat_read_only=True)
    assert flat.wish is not None
    assert flat.wish.bind_options is not None
    assert flat.wish.bind_options.read_only_non_recursive
    assert near_root(parse_bind("/x:/a"), "/srv/berth", flat_read_only=True).wish is None
