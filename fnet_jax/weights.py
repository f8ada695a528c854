"""The published HDF5 checkpoints of Factorizable Net: read into our parameters, and written back.

A file holds one dataset per PyTorch `state_dict` key, the dots in the key included, at the top
level. Its arrays differ from ours in three ways: convolutions are OIHW (ours HWIO), linear layers
are (out, in) (ours (in, out)), and layers that read a flattened map count its values channel-major,
C x P x P (ours P x P x C). Which key belongs to which of our layers is written out in `_LAYERS`;
what is in a file and what a model has must agree key for key.
"""

import dataclasses
import enum
import os
import pathlib
from collections.abc import Iterable, Mapping

import h5py
import numpy as np
from flax import traverse_util

from fnet_jax.errors import UserError, listed, shown
from fnet_jax.files import partial_of, writing
from fnet_jax.hdf5 import open_arrays


class Layout(enum.Enum):
    """How the array of a PyTorch layer is laid out, and so how it becomes ours."""

    AS_IS = "biases and embeddings: the same array"
    CONV = "convolution: (out, in, h, w) -> (h, w, in, out)"
    POINTWISE = "1x1 convolution: (out, in, 1, 1) -> (in, out)"
    LINEAR = "linear layer: (out, in) -> (in, out)"
    FLATTENED = "linear layer over a flattened map: (out, C x P x P) -> (P x P x C, out)"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array: its key and shape in the file, its path in our parameters, and its layout.

    `channels` is C of a FLATTENED layout, else 0.
    """

    key: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    layout: Layout
    channels: int = 0

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """The array of the file as our parameter, C-contiguous."""
        if self.layout is Layout.CONV:
            array = array.transpose(2, 3, 1, 0)
        elif self.layout is Layout.POINTWISE:
            array = array[:, :, 0, 0].T
        elif self.layout is Layout.LINEAR:
            array = array.T
        elif self.layout is Layout.FLATTENED:
            out = array.shape[0]
            pool = _pool_size(array.shape[1], self.channels)
            maps = array.reshape(out, self.channels, pool, pool)
            array = maps.transpose(2, 3, 1, 0).reshape(-1, out)
        return np.ascontiguousarray(array)

    def to_original(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`."""
        if self.layout is Layout.CONV:
            array = array.transpose(3, 2, 0, 1)
        elif self.layout is Layout.POINTWISE:
            array = array.T[:, :, None, None]
        elif self.layout is Layout.LINEAR:
            array = array.T
        elif self.layout is Layout.FLATTENED:
            out = array.shape[1]
            pool = _pool_size(array.shape[0], self.channels)
            maps = array.reshape(pool, pool, self.channels, out)
            array = maps.transpose(3, 2, 0, 1).reshape(out, -1)
        return np.ascontiguousarray(array)


# Position of each convolution in torchvision's `vgg16().features`, whose names the original kept.
VGG16_FEATURES = {
    "conv1_1": 0,
    "conv1_2": 2,
    "conv2_1": 5,
    "conv2_2": 7,
    "conv3_1": 10,
    "conv3_2": 12,
    "conv3_3": 14,
    "conv4_1": 17,
    "conv4_2": 19,
    "conv4_3": 21,
    "conv5_1": 24,
    "conv5_2": 26,
    "conv5_3": 28,
}

# The object-to-object attention module, which occurs in message passing and in duplicate removal.
_RELATION_LAYERS = (
    ("key", "transform_key", Layout.LINEAR),
    ("query", "transform_query", Layout.LINEAR),
    ("value", "transform_visual", Layout.LINEAR),
    ("geometry/fc1", "transform_geometry.transform_geometry.0", Layout.LINEAR),
    ("geometry/fc2", "transform_geometry.transform_geometry.2", Layout.LINEAR),
)

# (our layer, the original's layer, layout of its weight); {i} is a message passing step.
_LAYERS = (
    *(
        (f"backbone/{name}", f"rpn.features.{index}", Layout.CONV)
        for name, index in VGG16_FEATURES.items()
    ),
    ("rpn/conv", "rpn.conv1.conv", Layout.CONV),
    ("rpn/score", "rpn.score_conv.conv", Layout.POINTWISE),
    ("rpn/box_deltas", "rpn.bbox_conv.conv", Layout.POINTWISE),
    ("object_fc/fc1", "fc_obj.0", Layout.FLATTENED),
    ("object_fc/fc2", "fc_obj.3", Layout.LINEAR),
    ("subgraph_conv/conv1", "fc_region.0", Layout.CONV),
    ("subgraph_conv/conv2", "fc_region.3", Layout.CONV),
    *(
        (f"message_passing_{{i}}/{ours}", f"mps_list.{{i}}.{original}", layout)
        for ours, original, layout in (
            ("subgraph_to_object_query", "att_region2object_obj.1", Layout.LINEAR),
            ("subgraph_to_object_key", "att_region2object_reg.1", Layout.POINTWISE),
            ("subgraph_to_object_out", "transform_region2object.1", Layout.LINEAR),
            ("object_to_subgraph_query", "att_object2region_reg.1", Layout.POINTWISE),
            ("object_to_subgraph_key", "att_object2region_obj.1", Layout.LINEAR),
            ("object_to_subgraph_out", "transform_object2region.1", Layout.POINTWISE),
            *(
                (f"relation/{ours}", f"transform_object2object.{original}", layout)
                for ours, original, layout in _RELATION_LAYERS
            ),
        )
    ),
    ("predicate_inference/subject", "phrase_inference.transform_subject.1", Layout.LINEAR),
    ("predicate_inference/object", "phrase_inference.transform_object.1", Layout.LINEAR),
    ("predicate_inference/subgraph", "phrase_inference.transform_region.1", Layout.POINTWISE),
    ("predicate_inference/bottleneck", "phrase_inference.predicate_feat_pre.1", Layout.POINTWISE),
    ("predicate_inference/fc", "phrase_inference.predicate_feat_fc.0", Layout.FLATTENED),
    ("object_score", "score_obj", Layout.LINEAR),
    ("box_deltas", "bbox_obj", Layout.LINEAR),
    ("predicate_score", "score_pred", Layout.LINEAR),
    ("duplicate_removal/visual", "nms.transform_visual", Layout.LINEAR),
    ("duplicate_removal/rescore", "nms.transform_rescore", Layout.LINEAR),
    ("duplicate_removal/rank_embedding", "nms.rank_embeddings", Layout.AS_IS),
    *(
        (f"duplicate_removal/relation/{ours}", f"nms.relation_transform.{original}", layout)
        for ours, original, layout in _RELATION_LAYERS
    ),
)
_BY_OUR_LAYER = {ours: (original, layout) for ours, original, layout in _LAYERS}

# The maps that FLATTENED layers read have as many channels as these layers put out (first present).
_FLATTENED_FROM = {
    "object_fc/fc1": ("backbone/conv5_3",),
    "predicate_inference/fc": ("predicate_inference/bottleneck", "predicate_inference/subgraph"),
}
# An RPN checkpoint is a `state_dict` of the original's RPN alone: the same keys without this.
_RPN_PREFIX = "rpn."


def load_checkpoint(path: str | os.PathLike, template: Mapping) -> dict:
    """Reads a published F-Net checkpoint.

    Args:
      path: an HDF5 file as the original's `save_net` writes it.
      template: our parameters, arrays or `jax.ShapeDtypeStruct`s, as
        `jax.eval_shape(model.init, ...)["params"]` gives; decides which keys and shapes to expect.

    Returns:
      Parameters of the template's structure, shapes and dtypes, as NumPy arrays.

    Raises:
      UserError: the file is not a readable HDF5 file, or it lacks a key, has one too many, or one
        of another shape; the message lists them.
    """
    with open_arrays(path) as arrays:
        return read_entries(path, arrays, layout_entries(template), template)


def load_rpn(path: str | os.PathLike, template: Mapping) -> dict:
    """Reads backbone and region proposal network from a checkpoint.

    Args:
      path: a checkpoint of the RPN alone (keys without prefix, or with the prefix `rpn.`), or of a
        whole F-Net, of which the rest is ignored.
      template: as for `load_checkpoint`; only its `backbone` and `rpn` are looked at.

    Returns:
      `{"backbone": ..., "rpn": ...}` as NumPy arrays.

    Raises:
      UserError: as `load_checkpoint`.
    """
    template = {name: template[name] for name in ("backbone", "rpn")}
    entries = layout_entries(template)
    heads = {original.split(".")[0] for _, original, _ in _LAYERS} - {"rpn"}
    with open_arrays(path) as arrays:
        if any(key.startswith(_RPN_PREFIX) for key in arrays):
            arrays = {k: array for k, array in arrays.items() if k.split(".")[0] not in heads}
        else:
            entries = [
                dataclasses.replace(entry, key=entry.key.removeprefix(_RPN_PREFIX))
                for entry in entries
            ]
        return read_entries(path, arrays, entries, template)


def kind_of(path: str | os.PathLike) -> str:
    """What a weights file holds: "model", "rpn" (published formats) or "vgg16" (anything else)."""
    if not str(path).endswith((".h5", ".hdf5")):
        return "vgg16"
    with open_arrays(path) as arrays:
        if "score_obj.weight" in arrays:
            return "model"
        return "rpn" if any(key.endswith("score_conv.conv.weight") for key in arrays) else "vgg16"


def export_checkpoint(path: str | os.PathLike, params: Mapping) -> None:
    """Writes parameters as the original would: the inverse of `load_checkpoint`.

    The file appears under its name only when complete; UserError if it cannot be written.
    """
    arrays = traverse_util.flatten_dict(dict(params))
    partial = partial_of(pathlib.Path(path))
    with writing(path):
        with h5py.File(partial, "w") as file:
            for entry in layout_entries(params):
                array = np.asarray(arrays[entry.path])
                file.create_dataset(entry.key, data=entry.to_original(array))
        os.replace(partial, path)


def layout_entries(template: Mapping) -> list[Entry]:
    """What a published checkpoint of these parameters (arrays or shapes) holds.

    Raises:
      KeyError: the original has no layer like one of the template's.
    """
    shapes = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(dict(template)).items()}
    return [_entry(path, shapes) for path in shapes]


def read_entries(
    path: str | os.PathLike,
    found: Mapping,
    entries: Iterable[Entry],
    template: Mapping,
    *,
    advice: str = "use the config it was trained with",
) -> dict:
    """Turns named arrays of a file into parameters, after checking that they are the expected ones.

    Args:
      path: the file, for messages.
      found: key -> array, which is read once all shapes are right; no key may be unknown.
      entries: what to expect.
      template: gives the dtypes.
      advice: what the user can do if they are not.

    Raises:
      UserError: lists missing, unknown and mis-shaped keys.
    """
    expected = {entry.key: entry for entry in entries}
    problems = [f"missing {key} {_show(expected[key].shape)}" for key in expected.keys() - found]
    for key, array in found.items():
        if key not in expected:
            problems.append(f"unknown {shown(key)} {_show(array.shape)}")
        elif array.shape != expected[key].shape:
            problems.append(f"{key} is {_show(array.shape)}, expected {_show(expected[key].shape)}")
        elif not np.issubdtype(array.dtype, np.floating):
            problems.append(f"{key} holds {array.dtype}, expected floating point numbers")
    if problems:
        raise UserError(
            f"{os.fspath(path)} does not fit the configured model ({advice}): "
            f"{listed(sorted(problems))}"
        )
    dtypes = {at: leaf.dtype for at, leaf in traverse_util.flatten_dict(dict(template)).items()}
    return traverse_util.unflatten_dict(
        {
            entry.path: entry.to_ours(np.asarray(found[key])).astype(dtypes[entry.path], copy=False)
            for key, entry in expected.items()
        }
    )


def _entry(path: tuple[str, ...], shapes: Mapping) -> Entry:
    *layer, leaf = path
    # A message passing layer stands in the table once for all steps.
    prefix, _, step = layer[0].rpartition("_")
    numbered = prefix == "message_passing" and step.isdecimal()
    ours = "/".join(["message_passing_{i}", *layer[1:]] if numbered else layer)
    if ours not in _BY_OUR_LAYER or leaf not in ("kernel", "bias", "embedding"):
        raise KeyError(f"the published checkpoints have nothing like the parameter {path}")
    original, layout = _BY_OUR_LAYER[ours]
    if numbered:
        original = original.format(i=step)
    shape = tuple(shapes[path])
    if leaf == "bias":
        return Entry(f"{original}.bias", path, shape, Layout.AS_IS)
    key = f"{original}.weight"
    if layout is Layout.CONV:
        height, width, inputs, outputs = shape
        return Entry(key, path, (outputs, inputs, height, width), layout)
    if layout is Layout.POINTWISE:
        return Entry(key, path, (shape[1], shape[0], 1, 1), layout)
    if layout is Layout.LINEAR:
        return Entry(key, path, shape[::-1], layout)
    if layout is Layout.FLATTENED:
        source = next(
            kernel
            for candidate in _FLATTENED_FROM[ours]
            if (kernel := (*candidate.split("/"), "kernel")) in shapes
        )
        return Entry(key, path, shape[::-1], layout, channels=shapes[source][-1])
    return Entry(key, path, shape, layout)


def _pool_size(flattened: int, channels: int) -> int:
    pool = round((flattened / channels) ** 0.5)
    if pool * pool * channels != flattened:
        raise ValueError(f"{flattened} inputs are no square map of {channels} channels")
    return pool


def _show(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
