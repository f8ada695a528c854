"""The `shapes` builder: draws its own photos, so that a first run needs no download."""

import dataclasses
import json
from collections.abc import Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds

from fnet_jax.datasets import schema
from fnet_jax.datasets.scene_graph_builder import SceneGraphBuilder
from fnet_jax.datasets.shapes import scene as scenes


@dataclasses.dataclass
class ShapesConfig(tfds.core.BuilderConfig):
    """How many images each split has, and the seed that all of them are drawn from."""

    train: int = 3000
    validation: int = 100
    test: int = 200
    seed: int = 0


class Shapes(SceneGraphBuilder):
    """Procedurally drawn scenes of overlapping shapes: 8 object classes, 9 predicates."""

    name = "shapes"
    VERSION = tfds.core.Version("3.0.0")  # To be raised with every change of what is drawn.
    SPLITS = ("train", "validation", "test")
    BUILDER_CONFIGS = [  # noqa: RUF012 - the attribute that TFDS reads
        ShapesConfig(name="default", description="3000 training scenes"),
        ShapesConfig(name="tiny", description="for tests", train=24, validation=4, test=8),
    ]

    def fingerprint(self, source: None) -> str:
        return json.dumps(dataclasses.asdict(self.builder_config), default=str)

    def vocabulary(self, source: None) -> schema.Vocabulary:
        return schema.Vocabulary(
            (schema.BACKGROUND, *scenes.OBJECT_CLASSES), (schema.BACKGROUND, *scenes.PREDICATES)
        )

    def scenes(self, source: None, split: str) -> Iterator[schema.Scene]:
        config = self.builder_config
        for index in range(getattr(config, split)):
            # A stream of its own for each image: no split shares a scene with another.
            rng = np.random.default_rng([config.seed, self.SPLITS.index(split), index])
            image, boxes, labels, relationships = scenes.draw(rng)
            encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 93])[1].tobytes()
            annotation = schema.Annotation(f"{split}_{index:05d}.jpg", boxes, labels, relationships)
            yield schema.Scene(encoded, image.shape[0], image.shape[1], annotation)
