import json
from pathlib import Path

from .test_registry import berth
from .test_registry_content import root  # noqa: F401


def test_an_exported_layout_can_be_imported(root: Path, tmp_path_factory: object) -> None:  # noqa: F811
    layout, other = root / "layout", root / "other"
    for tag in ("v1", "v2", "v1"):
        assert berth("export", f"a/b:{tag}", str(layout), "--root", str(root)).exit_code == 0
    index = json.loads((layout / "index.json").read_text())
    assert [item["annotations"]["org.opencontainers.image.ref.name"] for item in index["manifests"]] == ["v2", "v1"]
    taken = berth("import", str(layout), "x/y", "--root", str(other))
    assert sorted(taken.output.split()) == ["x/y:v1", "x/y:v2"]
    assert "no problems found" in berth("verify", "--root", str(other)).output
    one, two = (
        json.loads(berth("inspect", n, "--root", str(r)).output) for n, r in (("a/b:v1", root), ("x/y:v1", other))
    )
    assert one["digest"] == two["digest"]


def test_a_damaged_layout_is_refused(root: Path) -> None:  # noqa: F811
    layout = root / "layout"
    berth("export", "c", str(layout), "--root", str(root))
    for path in (layout / "blobs" / "sha256").iterdir():
        path.write_bytes(path.read_bytes() + b" ")
    answer = berth("import", str(layout), "x", "--root", str(root / "other"))
    assert answer.exit_code == 1 and "cannot import" in answer.output
    (layout / "index.json").write_text("{")
    assert berth("import", str(layout), "x", "--root", str(root / "other")).exit_code == 1


def test_copying_from_nowhere_says_so() -> None:
    answer = berth("copy", "127.0.0.1:1/a:v1", "127.0.0.1:1/b:v1")
    assert answer.exit_code == 1 and "connection refused" in answer.output
    assert "must be lowercase" in berth("copy", "127.0.0.1:1/A", "127.0.0.1:1/b").output
