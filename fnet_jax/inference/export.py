"""A trained network as one file that runs with JAX and NumPy alone: weights, programs, names.

The file is a zip archive, nothing in it compressed twice:

    manifest.json                   what the rest is, and how an image becomes an input
    weights.npz                     float32 arrays, named by their paths in the parameter tree
    programs/HEIGHTxWIDTH.exported  detection on images padded to this bucket, as `jax.export`
                                    serializes a StableHLO program

Every program is called as `fn(weights, image, im_info)`: the dict of weights.npz, (H, W, 3) uint8
and (5,) float32 as in `fnet_jax.detect.detect`; it returns a dict of the arrays in `OUTPUTS`.
docs/run_exported.py is how to run it, docs/export.md what to know about it.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import export
from tqdm import tqdm

from fnet_jax.detect import TestOptions, detect
from fnet_jax.errors import UserError
from fnet_jax.files import partial_of, writing
from fnet_jax.model import FactorizableNet

FORMAT, VERSION = "fnet-jax/exported", 1
PLATFORMS = ("cpu", "cuda", "tpu")
# What a program returns of the graph; the shapes are in the manifest.
OUTPUTS = (
    "boxes",
    "scores",
    "classes",
    "object_mask",
    "subjects",
    "objects",
    "predicates",
    "triplet_scores",
    "triplet_mask",
)

_KNOWN_PLATFORMS = (*PLATFORMS, "rocm")
_SEPARATOR = "/"


@dataclasses.dataclass(frozen=True)
class ExportedProgram:
    """What became of one bucket.

    Attributes:
      height, width: of the padded image, pixels.
      file: its name in the archive.
      size: of that file, bytes.
      seconds: that tracing, lowering and serializing took.
    """

    height: int
    width: int
    file: str
    size: int
    seconds: float


def export_program(
    path: str | os.PathLike,
    model: FactorizableNet,
    params: Mapping,
    options: TestOptions,
    *,
    buckets: Sequence[tuple[int, int]],
    image: Mapping,
    object_names: Sequence[str],
    predicate_names: Sequence[str],
    platforms: Sequence[str] = PLATFORMS,
    facts: Mapping | None = None,
) -> list[ExportedProgram]:
    """Writes a network as one file; until it is complete, as PATH.partial.

    Args:
      path: of the file; one that exists is replaced. The folder must exist.
      model, params: the network.
      options: of detection. The program finds its own objects, so `use_gt_boxes` must be False;
        SGB's rankings are left out.
      buckets: (height, width) of the padded images, pixels; a program for each.
      image: `test_scale`, `max_size` and `color_order`, as in `config.image`.
      object_names, predicate_names: by class index, entry 0 being the background.
      platforms: on which every program can run, of "cpu", "cuda", "tpu" and "rocm".
      facts: JSON-able, kept in the manifest; such as `checkpoint` and `step`.

    Returns: what was written for each bucket, in their order.

    Raises:
      UserError: a platform or bucket that cannot be, given boxes, or the file cannot be written.
      ValueError: the names are not as many as the model's classes.
    """
    _check(model, options, buckets, object_names, predicate_names, platforms)
    weights = {
        name: np.asarray(array)
        for name, array in sorted(traverse_util.flatten_dict(dict(params), sep=_SEPARATOR).items())
    }
    options = dataclasses.replace(options, sgb_rankings=False)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "jax_version": jax.__version__,
        "platforms": list(platforms),
        "test_scale": image["test_scale"],
        "max_size": image["max_size"],
        "color_order": image["color_order"],
        "object_names": list(object_names),
        "predicate_names": list(predicate_names),
        "facts": dict(facts or {}),
        "programs": [],
    }
    written = []
    with _archive(pathlib.Path(path)) as archive:
        with archive.open("weights.npz", "w", force_zip64=True) as file:
            np.savez(file, **weights)
        # disable=None: no bar unless the output is a terminal.
        for height, width in tqdm(
            buckets, unit="program", desc="export", disable=None, file=sys.stderr
        ):
            start = time.monotonic()
            program = _lowered(model, options, weights, (height, width), platforms)
            serialized = program.serialize()
            seconds = time.monotonic() - start
            name = f"programs/{height}x{width}.exported"
            archive.writestr(name, serialized)
            written.append(ExportedProgram(height, width, name, len(serialized), seconds))
            manifest["programs"].append(
                {
                    "height": height,
                    "width": width,
                    "file": name,
                    "calling_convention_version": program.calling_convention_version,
                    "outputs": _described(program),
                }
            )
        archive.writestr("manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False))
    return written


def _check(model, options, buckets, object_names, predicate_names, platforms) -> None:
    unknown = [platform for platform in platforms if platform not in _KNOWN_PLATFORMS]
    if unknown or not platforms:
        raise UserError(
            f"platforms are {', '.join(platforms) or 'none'}; each must be one of "
            f"{', '.join(_KNOWN_PLATFORMS)}"
        )
    if options.use_gt_boxes:
        raise UserError("an exported network finds its own objects; leave test.use_gt_boxes False")
    # The network halves an image four times.
    if not buckets or any(min(bucket) < 16 for bucket in buckets):
        raise UserError(
            f"image.buckets is {tuple(map(tuple, buckets))}; it needs at least one "
            "(height, width), of 16 pixels or more each"
        )
    for names, count in (
        (object_names, model.num_object_classes),
        (predicate_names, model.num_predicate_classes),
    ):
        if len(names) != count:
            raise ValueError(f"{len(names)} names for {count} classes")


@contextlib.contextmanager
def _archive(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
    """An archive to fill that has its name once it is complete, and is gone after an exception.

    Nothing is compressed: weights hardly would be, and so a damaged byte is found by its checksum.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file to export to")
    partial = partial_of(path)
    try:
        with writing(path):
            with zipfile.ZipFile(partial, "w") as archive:
                yield archive
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _lowered(model, options, weights, bucket, platforms) -> export.Exported:
    """Detection on images of a bucket's size, with the weights as an argument.

    No safety check is switched off, and none complains: on every platform the program consists of
    StableHLO's own operations and CHLO's top_k, without a custom call. What `platform_dependent`
    chooses between stays a choice, made when the program is compiled.
    """

    def run(weights, image, im_info):
        params = traverse_util.unflatten_dict(weights, sep=_SEPARATOR)
        graph = detect(model, params, {"image": image, "im_info": im_info}, options)
        return {name: getattr(graph, name) for name in OUTPUTS}

    return export.export(jax.jit(run), platforms=platforms)(
        {name: jax.ShapeDtypeStruct(w.shape, w.dtype) for name, w in weights.items()},
        jax.ShapeDtypeStruct((*bucket, 3), jnp.uint8),
        jax.ShapeDtypeStruct((5,), jnp.float32),
    )


def _described(program: export.Exported) -> dict[str, dict]:
    outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
    return {
        name: {"shape": list(outputs[name].shape), "dtype": str(outputs[name].dtype)}
        for name in OUTPUTS
    }
