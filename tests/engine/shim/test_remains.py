"""What the runtime left goes without it, and only when that is certain to be all."""

from pathlib import Path

from engine.shim.remains import remove


def left(tmp_path: Path, config: str = "{}") -> tuple[str, str, list[str]]:
    bundle, state, group = tmp_path / "bundle", tmp_path / "state", tmp_path / "groups" / "c"
    bundle.mkdir()
    (bundle / "config.json").write_text(config)
    state.mkdir()
    (state / "state.json").touch()
    (group / "exec-1" / "deeper").mkdir(parents=True)
    return str(bundle), str(state), [str(group), str(tmp_path / "groups" / "missing")]


def test_groups_and_state_are_removed(tmp_path: Path) -> None:
    assert remove(*left(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "groups"]
    assert list((tmp_path / "groups").iterdir()) == []


def test_hooks_are_left_to_the_runtime(tmp_path: Path) -> None:
    assert not remove(*left(tmp_path, '{"hooks": {"poststop": [{"path": "/bin/true"}]}}'))
    assert (tmp_path / "state" / "state.json").exists()


def test_without_groups_the_runtime_must_do_it(tmp_path: Path) -> None:
    bundle, state, _groups = left(tmp_path)
    assert not remove(bundle, state, [])


def test_what_cannot_be_removed_is_left_to_the_runtime(tmp_path: Path) -> None:
    bundle, state, groups = left(tmp_path)
    Path(groups[0], "cgroup.procs").touch()
    assert not remove(bundle, state, groups)
