"""Options to flags, and which mount a path lies on."""

from engine.shim.mounts import containing_mount, split_options


def test_flags_propagation_and_the_file_systems_own_options_are_told_apart() -> None:
    options = ("ro", "nosuid", "lowerdir=a:b", "rslave", "defaults", "userxattr", "rw")
    assert split_options(options) == (2, (1 << 19) | 16384, ["lowerdir=a:b", "userxattr"])


def test_the_longest_mount_point_wins_and_tells_whether_it_is_shared() -> None:
    lines = [
        "1 0 8:1 / / rw shared:1 - ext4 /dev/a rw",
        "2 1 0:5 / /run rw,nosuid shared:2 master:9 - tmpfs tmpfs rw",
        r"3 2 0:6 / /run/with\040space rw - tmpfs tmpfs rw",
        "4 1 0:7 / /running rw - tmpfs tmpfs rw",
    ]
    assert containing_mount("/run/berth/x", lines) == ("/run", True)
    assert containing_mount("/run/with space/x", lines) == ("/run/with space", False)
    assert containing_mount("/runner", lines) == ("/", True)


def test_a_later_mount_on_the_same_point_covers_the_earlier() -> None:
    lines = ["1 0 8:1 / / rw shared:1 - ext4 /dev/a rw", "2 1 0:5 / / rw - overlay overlay rw"]
    assert containing_mount("/any", lines) == ("/", False)
