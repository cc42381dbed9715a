from registry.digest import Digest
from registry.store import paths

DIGEST = Digest.parse("sha256:" + "ab" * 32)
HEX = "ab" * 32
ROOT = "docker/registry/v2"


def test_the_tree_is_registry2s() -> None:
    assert paths.blob_data(DIGEST) == f"{ROOT}/blobs/sha256/ab/{HEX}/data"
    assert paths.layer_link("a/b", DIGEST) == f"{ROOT}/repositories/a/b/_layers/sha256/{HEX}/link"
    assert paths.revision_link("a", DIGEST) == f"{ROOT}/repositories/a/_manifests/revisions/sha256/{HEX}/link"
    assert paths.tag_current("a", "v1") == f"{ROOT}/repositories/a/_manifests/tags/v1/current/link"
    assert (
        paths.tag_history_link("a", "v1", DIGEST) == f"{ROOT}/repositories/a/_manifests/tags/v1/index/sha256/{HEX}/link"
    )
    assert paths.upload_data("a", "u") == f"{ROOT}/repositories/a/_uploads/u/data"
    assert paths.upload_started("a", "u") == f"{ROOT}/repositories/a/_uploads/u/startedat"


def test_what_is_inside_begins_with_its_folder() -> None:
    for inside, folder in (
        (paths.blob_data(DIGEST), paths.blob_folder(DIGEST)),
        (paths.layer_link("a", DIGEST), paths.layers("a")),
        (paths.revision_link("a", DIGEST), paths.revisions("a")),
        (paths.revisions("a"), paths.manifests("a")),
        (paths.tag_current("a", "t"), paths.tag_folder("a", "t")),
        (paths.tag_history_link("a", "t", DIGEST), paths.tag_history("a", "t")),
        (paths.tag_folder("a", "t"), paths.tags("a")),
        (paths.upload_data("a", "u"), paths.upload_folder("a", "u")),
        (paths.upload_folder("a", "u"), paths.uploads("a")),
        (paths.layers("a"), paths.repository("a")),
    ):
        assert inside.startswith(folder + "/")


def test_history_is_told_from_tags_of_any_name() -> None:
    for tag in ("v1", "index", "current"):
        assert paths.is_history(paths.tag_history_link("a/index/b", tag, DIGEST))
        assert not paths.is_history(paths.tag_current("a/index/b", tag))
    assert not paths.is_history(paths.revision_link("a/index/b", DIGEST))


def test_what_is_ours_alone_lies_outside_the_shared_tree() -> None:
    assert not paths.temporary("x").startswith("docker/")
    assert not paths.state("x").startswith("docker/")
