"""Scene graphs of images from a checkpoint alone: no dataset, no config file."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from fnet_jax import builder, checkpoint, image_ops, train_step
from fnet_jax.configs.base import get_config
from fnet_jax.detect import TestOptions, detect_on_devices
from fnet_jax.errors import UserError, reason
from fnet_jax.inference.given_boxes import GivenBoxes, given_boxes
from fnet_jax.inference.image_files import read_image
from fnet_jax.inference.scene_graph import SceneGraph
from fnet_jax.model import FactorizableNet, param_shapes
from fnet_jax.predictions import from_graph, to_line
from fnet_jax.structures import PaddedGraph

Photo = np.ndarray | str | os.PathLike


@dataclasses.dataclass(frozen=True)
class ImageFormat:
    """How an image becomes the network's input; the fields of `config.image`."""

    test_scale: int
    max_size: int
    color_order: str
    buckets: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, section: Mapping) -> "ImageFormat":
        """From `config.image`.

        Its buckets are made for a dataset, which may have no upright images. Turned ones, and a
        square that holds every image, are added: nothing is compiled before it is used.
        """
        given = [tuple(bucket) for bucket in section["buckets"]]
        longest = section["max_size"]
        more = [bucket[::-1] for bucket in given] + [(longest, longest)]
        return cls(
            section["test_scale"],
            longest,
            section["color_order"],
            tuple(dict.fromkeys(given + more)),
        )

    def prepare(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(h, w, 3) uint8 RGB -> the padded image (H, W, 3) uint8 and `im_info` (5,) float32."""
        factor = float(image_ops.resize_factor(image.shape[:2], self.test_scale, self.max_size))
        resized = image_ops.resize(image, factor)
        if self.color_order == "bgr":
            resized = resized[..., ::-1]
        height, width = resized.shape[:2]
        bucket = image_ops.smallest_bucket(self.buckets, height, width)
        info = np.array([height, width, factor, *image.shape[:2]], np.float32)
        return image_ops.pad(resized, bucket), info


class Prepared(NamedTuple):
    """An image as the network takes it.

    Attributes:
      example: `image` (H, W, 3) uint8 and `im_info` (5,) float32; with given objects `gt_boxes`
        (R, 4) float32 and `gt_classes` (R,) int32.
      name: of the image.
      size: (height, width) of the original image.
      given: how many objects are given; None if they are to be found.
    """

    example: dict[str, np.ndarray]
    name: str
    size: tuple[int, int]
    given: int | None


class SceneGraphPredictor:
    """Finds the scene graphs of images.

    Images are resized and padded to a few sizes; the first image of each size waits for its
    program to be compiled (or read from the cache of `fnet_jax.compilation_cache`), and no other.
    With several devices a list of images is divided among them.

    Attributes:
      object_names, predicate_names: by class index, entry 0 being the background.
      step: optimizer steps that the weights were trained for, if known.
    """

    def __init__(
        self,
        model: FactorizableNet,
        params: Mapping,
        options: TestOptions,
        image_format: ImageFormat,
        object_names: Sequence[str],
        predicate_names: Sequence[str],
        step: int | None = None,
    ):
        self.model, self.options, self.image_format = model, options, image_format
        self.object_names, self.predicate_names = tuple(object_names), tuple(predicate_names)
        self.params, self.step = params, step

    @classmethod
    def from_checkpoint(
        cls, path: str | os.PathLike, config: ConfigDict | None = None
    ) -> "SceneGraphPredictor":
        """From what training saved; it carries its config, class names and anchors.

        Args:
          path: a workdir (its best checkpoint is taken), or a checkpoint folder inside.
          config: whose `test` section, `image.buckets` and `model.compute_dtype` are taken instead
            of the checkpoint's.

        Raises:
          UserError: there is no checkpoint, it cannot be read, or does not fit the config.
        """
        if not pathlib.Path(path).is_dir():
            raise UserError(f"--checkpoint: {path} is no workdir and no checkpoint folder")
        saved = checkpoint.restore(path, prefer=checkpoint.BEST, with_optimizer=False)
        facts = saved.metadata
        missing = {"config", "object_names", "predicate_names", "anchors"} - facts.keys()
        if missing:
            raise UserError(f"the checkpoint {path} does not say its {', '.join(sorted(missing))}")
        try:
            trained = _config_of(facts, config)
            _check_dimensions(trained.model, saved.params)
            names = [_texts(facts[f"{kind}_names"]) for kind in ("object", "predicate")]
            anchors = tuple(map(tuple, _rows(facts["anchors"], 4)))
            model = builder.build_model(trained, *map(len, names)).clone(base_anchors=anchors)
            template = param_shapes(model)
            options = builder.test_options(trained)
            image_format = ImageFormat.of(trained.image)
        except UserError as error:
            raise UserError(f"the checkpoint {path}: {error}") from error
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise UserError(
                f"the checkpoint {path} describes a network that cannot be ({reason(error)}); "
                "give another one"
            ) from error
        checkpoint.check_fits(saved.params, template, path)
        return cls(model, saved.params, options, image_format, *names, saved.step)

    def __call__(
        self,
        images: Photo | Sequence[Photo],
        boxes: np.ndarray | Sequence[np.ndarray] | None = None,
        classes: Sequence | None = None,
    ) -> SceneGraph | list[SceneGraph]:
        """The scene graph of an image, or those of a list of images, in order.

        Args:
          images: (h, w, 3) uint8 RGB arrays or paths; one, or a list.
          boxes: the objects to relate, (n, 4) pixels of the original image, for each image; None
            to find them.
          classes: with `boxes`, the names of their classes; None, for one or for all, where the
            network is to say.

        Raises:
          UserError: an image cannot be used, or boxes or classes are not what they should be.
        """
        if isinstance(images, Photo):
            only = [None if part is None else [part] for part in (boxes, classes)]
            return self([images], *only)[0]
        names = [os.path.basename(p) if not isinstance(p, np.ndarray) else "" for p in images]
        arrays = [p if isinstance(p, np.ndarray) else _read(p) for p in images]
        given = None
        if boxes is not None:
            each = classes if classes is not None else [None] * len(arrays)
            given = [
                given_boxes(*of_image, self.object_names)
                for of_image in zip(boxes, each, strict=True)
            ]
        rows = zip(arrays, names, given or [None] * len(arrays), strict=True)
        return self.run([self.prepare(*row) for row in rows])

    def prepare(
        self, image: np.ndarray, name: str = "", given: GivenBoxes | None = None
    ) -> Prepared:
        """What `run` takes; needs no device, so that threads can do it ahead.

        Args:
          image: (h, w, 3) uint8 RGB.
          name: what the graph is to call it.
          given: its objects, or None to find them.

        Raises:
          UserError: it is no such image, or boxes are too many or outside of it.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise UserError(
                f"an image must be a (height, width, 3) array of uint8 in RGB, not {image.shape} "
                f"of {image.dtype}"
            )
        padded, info = self.image_format.prepare(image)
        example = {"image": padded, "im_info": info}
        if given is not None:
            example |= self._gt_inputs(given, image.shape[:2], info[2])
        count = None if given is None else len(given.boxes)
        return Prepared(example, name, image.shape[:2], count)

    def _gt_inputs(self, given: GivenBoxes, size: tuple[int, int], factor) -> dict:
        slots, count = self.options.max_objects, len(given.boxes)
        if count > slots:
            raise UserError(
                f"{count} boxes are given; at most {slots} are possible (config.test.max_objects)"
            )
        limits = np.array([*size[::-1], *size[::-1]], np.float32) - 1.0
        outside = (given.boxes[:, :2] > limits[:2]) | (given.boxes[:, 2:] < 0.0)
        if outside.any():
            raise UserError(
                f"object {int(np.argmax(outside.any(axis=1)))} lies outside of the image of "
                f"{size[1]} x {size[0]} pixels"
            )
        boxes = np.zeros((slots, 4), np.float32)
        boxes[:count] = np.clip(given.boxes, 0.0, limits) * factor
        classes = np.zeros(slots, np.int32)
        classes[:count] = given.classes
        return {"gt_boxes": boxes, "gt_classes": classes}

    def run(self, prepared: Sequence[Prepared]) -> list[SceneGraph]:
        """The scene graphs of prepared images, in order."""
        groups: dict[tuple, list[int]] = {}
        for index, image in enumerate(prepared):
            groups.setdefault((image.given is None, *image.example["image"].shape), []).append(
                index
            )
        graphs: dict[int, SceneGraph] = {}
        count = jax.local_device_count()
        for (finds, *_), group in groups.items():
            program = self._find if finds else self._relate
            for start in range(0, len(group), count):
                rows = group[start : start + count]
                filled = rows + rows[-1:] * (count - len(rows))
                batch = jax.tree.map(
                    lambda *x: np.stack(x), *(prepared[index].example for index in filled)
                )
                found = jax.device_get(program(self._replicated, batch))
                for row, index in enumerate(rows):
                    graph = jax.tree.map(lambda x, row=row: x[row], found)
                    graphs[index] = self._named(graph, prepared[index])
        return [graphs[index] for index in range(len(prepared))]

    def _named(self, graph: PaddedGraph, prepared: Prepared) -> SceneGraph:
        if prepared.given is not None:  # The proposals behind them were context only.
            slots = np.arange(len(graph.object_mask))
            graph = graph.replace(object_mask=slots < prepared.given)
        about = prepared.name, *prepared.size, self.object_names, self.predicate_names
        return SceneGraph.from_dict(to_line(from_graph(graph), *about))

    @functools.cached_property
    def _replicated(self):
        return train_step.replicate(self.params)

    @functools.cached_property
    def _find(self):
        """The program that finds objects and relationships."""
        nothing = dataclasses.replace(self.options, use_gt_boxes=False, use_gt_labels=False)
        return detect_on_devices(self.model, nothing)

    @functools.cached_property
    def _relate(self):
        """The program that relates given objects."""
        given = dataclasses.replace(self.options, use_gt_boxes=True, use_gt_labels=True)
        return detect_on_devices(self.model, given)


def _config_of(facts: Mapping, config: ConfigDict | None) -> ConfigDict:
    """The config that a checkpoint was trained with, but for what `config` says of its use.

    Raises TypeError, ValueError or LookupError for what is no config of this project.
    """
    trained = get_config().lock()
    trained.update(facts["config"])
    if config is not None:
        trained.test = config.test
        trained.image.buckets = config.image.buckets
        trained.model.compute_dtype = config.model.compute_dtype
    image = trained.image
    if image.color_order not in ("bgr", "rgb"):
        raise ValueError(f"image.color_order is {image.color_order!r}")
    _rows(image.buckets, 2)
    _rows([image.mean, image.std], 3)
    return trained


def _check_dimensions(section: ConfigDict, params: Mapping) -> None:
    """Raises ValueError for numbers in `config.model` that no network with these arrays has.

    Others would take minutes or all memory before its shapes were known.
    """
    largest = max((size for leaf in jax.tree.leaves(params) for size in leaf.shape), default=0)
    if max(section.dim_object, section.dim_attention) > largest:
        raise ValueError("model.dim_object or dim_attention is larger than all of its arrays")
    if section.message_passing_steps > len(params):
        raise ValueError(f"it has no {section.message_passing_steps} message passing steps")


def _rows(value, length: int) -> list[list[float]]:
    """`value` if it is a list of rows of so many finite numbers; ValueError or TypeError if not."""
    rows = np.asarray(value, np.float64)
    if rows.ndim != 2 or rows.shape[1] != length or not np.isfinite(rows).all():
        raise ValueError(f"{value!r} are no rows of {length} numbers")
    return rows.tolist()


def _texts(value) -> list[str]:
    """`value` if it is a list of texts; TypeError if not."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"{value!r} is no list of names")
    return value


def _read(path: str | os.PathLike) -> np.ndarray:
    try:
        return read_image(path)
    except UserError as error:
        raise UserError(f"{os.fspath(path)}: {error}") from error
