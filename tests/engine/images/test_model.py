"""Images for a platform, and for another one."""

from __future__ import annotations

import pytest

from engine.images.model import MAX_LAYERS, Image, ImageDocument, parse_document
from registry.manifest import Descriptor, Platform

ARM = ImageDocument(os="linux", architecture="arm", variant="v7")


def image(document: ImageDocument, manifests: tuple[Descriptor, ...] = ()) -> Image:
    return Image("sha256:" + "0" * 64, document, (), (), manifests)


@pytest.mark.parametrize(
    ("wanted", "suits"),
    [
        (Platform(os="linux", architecture="arm", variant="v7"), True),
        (Platform(os="linux", architecture="arm"), True),
        (Platform(os="Linux"), True),
        (Platform(os="linux", architecture="arm", variant="v6"), False),
        (Platform(os="linux", architecture="amd64"), False),
        (Platform(os="windows", architecture="arm", variant="v7"), False),
    ],
)
def test_what_is_asked_for_must_be_what_it_is_for(wanted: Platform, suits: bool) -> None:
    assert image(ARM).suits(wanted) is suits


def test_the_index_it_came_from_may_know_better() -> None:
    told = Descriptor(platform=Platform(os="linux", architecture="arm64"))
    assert image(ImageDocument(os="linux", architecture="amd64"), (told,)).suits(told.platform or Platform())


def test_an_image_that_does_not_say_fits_all() -> None:
    assert image(ImageDocument()).suits(Platform(os="linux", architecture="s390x"))


def test_no_layers_may_be_written_as_null() -> None:
    assert parse_document(b'{"os": "linux", "rootfs": {"type": "layers", "diff_ids": null}}').rootfs.diff_ids == []
    with pytest.raises(ValueError, match="invalid image configuration"):
        parse_document(b'{"os": "linux", "rootfs": {"type": "layers", "diff_ids": 5}}')
    with pytest.raises(ValueError, match="invalid image configuration"):
        parse_document(b'{"os": 5, "rootfs": {"type": "layers", "diff_ids": null}}')


def test_an_image_has_so_many_layers_at_most() -> None:
    ids = ",".join(f'"sha256:{number:064x}"' for number in range(MAX_LAYERS + 1))
    with pytest.raises(ValueError, match="max depth exceeded"):
        parse_document(f'{{"rootfs": {{"type": "layers", "diff_ids": [{ids}]}}}}'.encode())
