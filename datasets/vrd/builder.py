"""The `vrd` builder: stores the photos as they are, with everything that is annotated on them."""

import hashlib
import pathlib
from collections.abc import Iterator

from fnet_jax.datasets import schema
from fnet_jax.datasets.vrd import annotations, layout
from fnet_jax.errors import UserError


class Vrd(schema.SceneGraphBuilder):
    """Visual Relationship Detection (Lu et al., ECCV 2016): 100 object classes, 70 predicates."""

    name = "vrd"
    MANUAL_DOWNLOAD_INSTRUCTIONS = layout.EXPECTED

    def vocabulary(self, source: pathlib.Path) -> schema.Vocabulary:
        return layout.read_vocabulary(layout.find_layout(source), source)

    def fingerprint(self, source: pathlib.Path) -> str:
        digest = hashlib.sha256()
        for path in layout.find_layout(source).files(source):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def scenes(self, source: pathlib.Path, split: str) -> Iterator[schema.Scene | schema.Skipped]:
        release = layout.find_layout(source)
        path = source / release.annotations.format(split=split)
        try:
            images = release.parse(annotations.load_json(path))
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        photos = layout.Photos(layout.photo_folders(release, source, split))
        for annotation in images:
            yield photos.load(annotation)
