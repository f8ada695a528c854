"""Objects that the user knows already, in place of the network's own proposals."""

import json
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fnet_jax.errors import UserError
from fnet_jax.predictions import quoted

# In `GivenBoxes.classes`: the network is to say what it is.
UNKNOWN = -1


class GivenBoxes(NamedTuple):
    """The objects of one image.

    Attributes:
      boxes: (n, 4) float32 (x1, y1, x2, y2), inclusive pixels of the original image.
      classes: (n,) int32, `UNKNOWN` where none is given.
    """

    boxes: np.ndarray
    classes: np.ndarray


def given_boxes(
    boxes: np.ndarray, names: Sequence[str | None] | None, object_names: Sequence[str]
) -> GivenBoxes:
    """Checked arrays of boxes and class names.

    Args:
      boxes: (n, 4) numbers.
      names: of the n classes; None, for one or for all, where the network is to say.
      object_names: by class index, entry 0 being the background.

    Raises:
      UserError: the boxes are no boxes, or a name is not among `object_names`.
    """
    try:
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    except (TypeError, ValueError) as error:
        raise UserError(f"boxes must be rows of four numbers, not {quoted(boxes)}") from error
    names = [None] * len(boxes) if names is None else names
    if len(names) != len(boxes):
        raise UserError(f"there are {len(boxes)} boxes, but {len(names)} classes")
    index = {name: position for position, name in enumerate(object_names) if position}
    classes = np.full(len(boxes), UNKNOWN, np.int32)
    for position, (box, name) in enumerate(zip(boxes, names, strict=True)):
        where = f"object {position}"
        if not np.isfinite(box).all() or box[2] < box[0] or box[3] < box[1]:
            raise UserError(f"{where} has the box {box.tolist()}, not [x1, y1, x2, y2] in pixels")
        if name is not None:
            if name not in index:
                raise UserError(
                    f"{where} has the class {quoted(name)}, which the network does not know; leave "
                    "it out and the network names the object"
                )
            classes[position] = index[name]
    return GivenBoxes(boxes, classes)


def read_boxes(path: str | os.PathLike, object_names: Sequence[str]) -> dict[str, GivenBoxes]:
    """Image name -> its objects, from a JSONL file with a line for each image.

        {"image": "cat.jpg", "objects": [{"box": [x1, y1, x2, y2], "class": "cat"}, ...]}

    "class" may be missing. The lines that `--mode predict` writes are such lines, too.

    Raises:
      UserError: naming the file, the line and what is wrong.
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.readlines()
    except OSError as error:
        raise UserError(f"--boxes: {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--boxes: {path} is no text in UTF-8") from error
    found: dict[str, GivenBoxes] = {}
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            name, boxes = _read_line(text, object_names)
        except UserError as error:
            raise UserError(f"--boxes: {path}, line {number}: {error}") from error
        if name in found:
            raise UserError(f"--boxes: {path}, line {number}: {quoted(name)} has a line already")
        found[name] = boxes
    return found


def _read_line(text: str, object_names: Sequence[str]) -> tuple[str, GivenBoxes]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError("it is no JSON") from error
    if not isinstance(line, dict) or not isinstance(line.get("image"), str):
        raise UserError('it needs "image": the file name')
    objects = line.get("objects")
    if not isinstance(objects, list) or not all(isinstance(item, dict) for item in objects):
        raise UserError('it needs "objects": a list of {"box": [x1, y1, x2, y2], "class": name}')
    for position, item in enumerate(objects):
        box = item.get("box")
        numbers = isinstance(box, list) and all(type(side) in (int, float) for side in box)
        if not numbers or len(box) != 4:
            raise UserError(f"object {position} has the box {quoted(box)}, not four numbers")
        if not isinstance(item.get("class", ""), str):
            raise UserError(f"object {position} has the class {quoted(item['class'])}, not a name")
    names = [item.get("class") for item in objects]
    return line["image"], given_boxes([item["box"] for item in objects], names, object_names)
