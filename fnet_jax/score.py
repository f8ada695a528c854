"""Scores a JSONL file of predictions, line by line, against an annotated split."""

import json
import os
import pathlib
import sys
from collections.abc import Iterator

from tqdm import tqdm

from fnet_jax.datasets.split import Split
from fnet_jax.errors import UserError
from fnet_jax.predictions import LineReader, quoted
from fnet_jax.protocols import Scores


def score_file(path: str | os.PathLike, split: Split, scores: Scores) -> dict[str, float | str]:
    """Feeds every line to `scores`; the memory needed does not depend on how many there are.

    Args:
      path: predictions in the format of `fnet_jax.predictions`, one line for each image of the
        split, in any order.
      split: the annotations.
      scores: fresh states of the protocols.

    Returns: `task`, what `scores` computes, and `images`.

    Raises:
      UserError: the file cannot be read, a line (named by its number) is not as it should be, or an
        image is missing, unknown or predicted twice.
    """
    path = pathlib.Path(path)
    positions = {name: index for index, name in enumerate(split.filenames)}
    reader = LineReader(split.object_classes, split.predicates)
    scored = bytearray(len(split))
    # disable=None: no bar unless the output is a terminal.
    with tqdm(total=len(split), unit="image", desc="score", disable=None, file=sys.stderr) as bar:
        for number, text in _lines(path):
            try:
                image, prediction = reader.read(_decoded(text))
                if image not in positions:
                    raise UserError(
                        f"the image {quoted(image)} is not in split {split.name} of {split.dataset}"
                    )
                index = positions[image]
                if scored[index]:
                    raise UserError(f"the image {quoted(image)} was predicted before")
                scores.update(split.record(index), prediction)
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}") from error
            scored[index] = 1
            bar.update()
    missing = [name for name, index in positions.items() if not scored[index]]
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} of {len(split)} images, {missing[0]!r} first; a line "
            "with empty lists says that nothing was found on an image"
        )
    return {"task": scores.task, **scores.compute(), "images": len(split)}


def _lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty, with their numbers from 1."""
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    yield number, text
    except OSError as error:
        raise UserError(f"--predictions: {path} cannot be read ({error.strerror})") from error


def _decoded(text: bytes) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"it is not JSON ({error})") from error
