import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.reference import InvalidReference, Reference, is_repository_path, is_tag

HEX = "a" * 64


@pytest.mark.parametrize(
    ("text", "domain", "path", "tag", "familiar"),
    [
        ("busybox", "docker.io", "library/busybox", "latest", "busybox:latest"),
        ("busybox:1.36", "docker.io", "library/busybox", "1.36", "busybox:1.36"),
        ("user/app", "docker.io", "user/app", "latest", "user/app:latest"),
        ("docker.io/busybox", "docker.io", "library/busybox", "latest", "busybox:latest"),
        ("index.docker.io/library/busybox", "docker.io", "library/busybox", "latest", "busybox:latest"),
        ("docker.io/library/a/b", "docker.io", "library/a/b", "latest", "library/a/b:latest"),
        ("localhost/app", "localhost", "app", "latest", "localhost/app:latest"),
        ("localhost:5000/a/b:v1", "localhost:5000", "a/b", "v1", "localhost:5000/a/b:v1"),
        ("LOCAL/app", "LOCAL", "app", "latest", "LOCAL/app:latest"),
        ("[::1]:5000/app", "[::1]:5000", "app", "latest", "[::1]:5000/app:latest"),
        ("reg.example.com/a__b/c--d.e_f", "reg.example.com", "a__b/c--d.e_f", "latest", None),
    ],
)
def test_names_are_read_as_docker_reads_them(text: str, domain: str, path: str, tag: str, familiar: str | None) -> None:
    reference = Reference.parse(text)
    assert (reference.domain, reference.path, reference.tag) == (domain, path, tag)
    assert reference.digest is None
    assert familiar is None or reference.familiar == familiar
    assert Reference.parse(reference.familiar) == reference
    assert Reference.parse(str(reference)) == reference


def test_a_digest_needs_no_tag_and_may_have_one() -> None:
    bare = Reference.parse(f"busybox@sha256:{HEX}")
    both = Reference.parse(f"busybox:1@sha256:{HEX}")
    assert bare.tag is None and bare.object_name == f"sha256:{HEX}"
    assert both.tag == "1" and both.familiar == f"busybox:1@sha256:{HEX}"
    assert both.repository().familiar == "busybox"
    assert both.with_tag("2").familiar == "busybox:2"
    assert bare.digest is not None
    assert both.with_digest(bare.digest).familiar == f"busybox@sha256:{HEX}"


def test_the_default_tag_can_be_left_out() -> None:
    assert Reference.parse("busybox", default_tag=False).tag is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "invalid reference format"),
        (":tag", "invalid reference format"),
        ("a:b:c", "invalid reference format"),
        ("a//b", "invalid reference format"),
        ("-a", "invalid reference format"),
        ("a/../b", "invalid reference format"),
        ("a:" + "t" * 129, "invalid reference format"),
        ("a b", "invalid reference format"),
        ("Busybox", "repository name (library/Busybox) must be lowercase"),
        ("host:5000/App", "repository name (App) must be lowercase"),
        (HEX, "cannot specify 64-byte hexadecimal strings"),
        ("a/" + "b" * 255, "must not be more than 255 characters"),
        ("a@sha256:" + "a" * 40, "invalid checksum digest length"),
        ("a@md5:" + "a" * 32, "unsupported digest algorithm"),
    ],
)
def test_errors_use_dockers_words(text: str, words: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        Reference.parse(text)
    assert words in str(caught.value)


@given(st.text(max_size=60))
def test_no_text_makes_the_parser_fail_otherwise(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidReference:
        return
    assert is_repository_path(reference.path)
    assert reference.tag is None or is_tag(reference.tag)


@pytest.mark.parametrize(
    "name", ["../a", "a/..", "_layers", "a/_manifests", "a/", "/a", "A", "a\x00b", "a%2fb", "a" * 256]
)
def test_reserved_and_escaping_paths_are_no_repositories(name: str) -> None:
    assert not is_repository_path(name)


def test_wrong_tags_are_refused_when_renaming() -> None:
    with pytest.raises(InvalidReference, match="^invalid tag format$"):
        Reference.parse("a").with_tag("no/slash")
