"""The `vrd` builder: stores the photos as they are, with everything that is annotated on them."""

import pathlib

from fnet_jax.datasets import json_files
from fnet_jax.datasets.file_builder import FileBuilder
from fnet_jax.datasets.schema import Annotation, Vocabulary
from fnet_jax.datasets.vrd import layout


class Vrd(FileBuilder):
    """Visual Relationship Detection (Lu et al., ECCV 2016): 100 object classes, 70 predicates."""

    name = "vrd"
    MANUAL_DOWNLOAD_INSTRUCTIONS = layout.EXPECTED

    def files(self, source: pathlib.Path) -> list[pathlib.Path]:
        return layout.find_layout(source).files(source)

    def optional_files(self, source: pathlib.Path) -> list[pathlib.Path]:
        weights = layout.find_layout(source).weights
        return [source / weights] if weights else []

    def photo_folders(self, source: pathlib.Path, split: str) -> list[pathlib.Path]:
        return [source / name.format(split=split) for name in layout.find_layout(source).photos]

    def vocabulary(self, source: pathlib.Path) -> Vocabulary:
        release = layout.find_layout(source)
        return json_files.listed_vocabulary(
            source / release.objects,
            source / release.predicates,
            *self.optional_files(source),
        )

    def annotations(self, source: pathlib.Path, split: str) -> list[Annotation]:
        release = layout.find_layout(source)
        path = source / release.annotations.format(split=split)
        return json_files.parse_file(path, release.parse)
