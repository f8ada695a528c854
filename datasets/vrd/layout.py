"""Finds VRD's files in a folder: the official release or F-Net's converted one."""

import dataclasses
import pathlib
from collections.abc import Callable

from fnet_jax.datasets.schema import Annotation
from fnet_jax.datasets.vrd import annotations
from fnet_jax.errors import UserError

EXPECTED = """
    Expected there, as officially released: json_dataset/{annotations_train,annotations_test,
    objects,predicates}.json and the photos in sg_dataset/sg_train_images/ and
    sg_dataset/sg_test_images/ (or all in sg_dataset/); or, as converted for F-Net:
    {train,test,objects,predicates}.json, optionally inverse_weight.json, and the photos in
    images/sg_train_images/ and images/sg_test_images/ (or all in images/).
"""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the files of one release lie, relative to the manual directory."""

    name: str
    annotations: str  # With {split} for the split's name, as in `photos`.
    objects: str
    predicates: str
    weights: str | None
    photos: tuple[str, ...]  # Folders in the order in which they are searched.
    parse: Callable[[object], list[Annotation]]

    def files(self, source: pathlib.Path) -> list[pathlib.Path]:
        """The files without which there is no dataset."""
        names = [self.annotations.format(split=split) for split in ("train", "test")]
        return [source / name for name in (*names, self.objects, self.predicates)]


LAYOUTS = (
    Layout(
        name="official",
        annotations="json_dataset/annotations_{split}.json",
        objects="json_dataset/objects.json",
        predicates="json_dataset/predicates.json",
        weights=None,
        photos=("sg_dataset/sg_{split}_images", "sg_dataset"),
        parse=annotations.parse_official,
    ),
    Layout(
        name="converted",
        annotations="{split}.json",
        objects="objects.json",
        predicates="predicates.json",
        weights="inverse_weight.json",
        photos=("images/sg_{split}_images", "images"),
        parse=annotations.parse_converted,
    ),
)


def find_layout(source: pathlib.Path) -> Layout:
    """The release that lies in `source`; UserError if there is none."""
    for layout in LAYOUTS:
        if any(path.is_file() for path in layout.files(source)[:2]):
            return layout
    raise UserError(f"no VRD annotations in {source}. {' '.join(EXPECTED.split())}")
