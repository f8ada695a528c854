"""The `vg_dr_net` builder: files in the form of converted VRD, one list of images for an option."""

import pathlib

import tensorflow_datasets as tfds

from fnet_jax.datasets import json_files
from fnet_jax.datasets.file_builder import FileBuilder
from fnet_jax.datasets.schema import Annotation, Vocabulary
from fnet_jax.datasets.vrd.annotations import parse_converted


class VgDrNet(FileBuilder):
    """Visual Genome for DR-Net (Dai et al., CVPR 2017): 399 object classes, 24 predicates."""

    name = "vg_dr_net"
    # The option, which is part of file names.
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="normal")]  # noqa: RUF012 - TFDS reads it
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
        Expected there, as converted for F-Net: train_normal.json, test_normal.json, objects.json,
        predicates.json, optionally inverse_weight.json, and the photos in images/.
    """

    def files(self, source: pathlib.Path) -> list[pathlib.Path]:
        lists = [self._images(source, split) for split in self.SPLITS]
        return [*lists, source / "objects.json", source / "predicates.json"]

    def optional_files(self, source: pathlib.Path) -> list[pathlib.Path]:
        return [source / "inverse_weight.json"]

    def photo_folders(self, source: pathlib.Path, split: str) -> list[pathlib.Path]:
        return [source / "images"]

    def vocabulary(self, source: pathlib.Path) -> Vocabulary:
        return json_files.listed_vocabulary(
            source / "objects.json", source / "predicates.json", source / "inverse_weight.json"
        )

    def annotations(self, source: pathlib.Path, split: str) -> list[Annotation]:
        return json_files.parse_file(self._images(source, split), parse_converted)

    def _images(self, source: pathlib.Path, split: str) -> pathlib.Path:
        return source / f"{split}_{self.builder_config.name}.json"
