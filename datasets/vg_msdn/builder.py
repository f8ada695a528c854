"""The `vg_msdn` builder: three cleansings of Visual Genome, with region captions."""

import pathlib

import tensorflow_datasets as tfds

from fnet_jax.datasets import json_files
from fnet_jax.datasets.file_builder import FileBuilder
from fnet_jax.datasets.schema import Annotation, Vocabulary
from fnet_jax.datasets.vg_msdn.annotations import parse
from fnet_jax.errors import UserError


class VgMsdn(FileBuilder):
    """Visual Genome for MSDN (Li et al., ICCV 2017): 150 object classes, 50 predicates."""

    name = "vg_msdn"
    BUILDER_CONFIGS = [  # noqa: RUF012 - the attribute that TFDS reads
        tfds.core.BuilderConfig(name="normal", description="train.json, the published choice"),
        tfds.core.BuilderConfig(name="small", description="train_small.json"),
        tfds.core.BuilderConfig(name="fat", description="train_fat.json"),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
        Expected there, as converted for F-Net: train.json and test.json (variants small and fat:
        train_small.json, test_small.json and so on), categories.json, optionally
        inverse_weight.json, and the photos in images/.
    """

    def files(self, source: pathlib.Path) -> list[pathlib.Path]:
        lists = [self._images(source, split) for split in self.SPLITS]
        return [*lists, source / "categories.json"]

    def optional_files(self, source: pathlib.Path) -> list[pathlib.Path]:
        return [source / "inverse_weight.json"]

    def photo_folders(self, source: pathlib.Path, split: str) -> list[pathlib.Path]:
        return [source / "images"]

    def vocabulary(self, source: pathlib.Path) -> Vocabulary:
        path = source / "categories.json"
        content = json_files.load_json(path)
        if not isinstance(content, dict):
            raise UserError(f"{path} must hold the lists 'object' and 'predicate'")
        objects, predicates = (
            json_files.class_names(path, content.get(kind), repr(kind))
            for kind in ("object", "predicate")
        )
        weights = source / "inverse_weight.json"
        if not weights.is_file():
            return Vocabulary(objects, predicates)
        return Vocabulary(
            objects,
            predicates,
            json_files.named_weights(weights, "object", objects),
            json_files.named_weights(weights, "predicate", predicates),
        )

    def annotations(self, source: pathlib.Path, split: str) -> list[Annotation]:
        vocabulary = self.vocabulary(source)
        return json_files.parse_file(
            self._images(source, split), lambda content: parse(content, vocabulary)
        )

    def _images(self, source: pathlib.Path, split: str) -> pathlib.Path:
        variant = self.builder_config.name
        suffix = "" if variant == "normal" else f"_{variant}"
        return source / f"{split}{suffix}.json"
