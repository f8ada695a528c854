"""The builder base of datasets that are made of annotation files and folders of photos."""

import abc
import hashlib
import pathlib
from collections.abc import Iterable, Iterator

from fnet_jax.datasets.photo_files import Photos
from fnet_jax.datasets.scene_graph_builder import SceneGraphBuilder
from fnet_jax.datasets.schema import Annotation, Scene, Skipped
from fnet_jax.errors import UserError


class FileBuilder(SceneGraphBuilder, skip_registration=True):
    """A dataset supplies the names of its files and how to read them.

    `MANUAL_DOWNLOAD_INSTRUCTIONS` says which files are expected where.
    """

    @abc.abstractmethod
    def files(self, source: pathlib.Path) -> list[pathlib.Path]:
        """The files without which there is no dataset."""

    def optional_files(self, source: pathlib.Path) -> list[pathlib.Path]:
        """Files that are read if they are there."""
        del source
        return []

    @abc.abstractmethod
    def photo_folders(self, source: pathlib.Path, split: str) -> list[pathlib.Path]:
        """The folders that may hold the photos of a split, the likeliest first."""

    @abc.abstractmethod
    def annotations(self, source: pathlib.Path, split: str) -> Iterable[Annotation]:
        """The images of a split in the order in which they are stored."""

    def check_source(self, source: pathlib.Path) -> None:
        """Raises UserError naming the files and folders that are not there."""
        missing = [str(path) for path in self.files(source) if not path.is_file()]
        if missing:
            expected = " ".join(self.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
            raise UserError(f"{self.name} lacks {', '.join(missing)}; add it. {expected}")
        for split in self.SPLITS:
            folders = self.photo_folders(source, split)
            if not any(folder.is_dir() for folder in folders):
                raise UserError(f"{self.name} has no {split} photos: put them in {folders[0]}")

    def fingerprint(self, source: pathlib.Path) -> str:
        self.check_source(source)
        digest = hashlib.sha256()
        optional = [path for path in self.optional_files(source) if path.is_file()]
        for path in (*self.files(source), *optional):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def scenes(self, source: pathlib.Path, split: str) -> Iterator[Scene | Skipped]:
        photos = Photos([f for f in self.photo_folders(source, split) if f.is_dir()])
        for annotation in self.annotations(source, split):
            yield photos.load(annotation)
