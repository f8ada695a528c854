"""Scene graphs of files: a line, a picture and a place on a page for each image."""

import collections
import concurrent.futures
import itertools
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from fnet_jax.errors import UserError
from fnet_jax.files import writing
from fnet_jax.inference.given_boxes import GivenBoxes
from fnet_jax.inference.image_files import (
    Source,
    frame_count,
    is_video,
    read_frames,
    read_image,
)
from fnet_jax.inference.page import write_page
from fnet_jax.inference.predictor import Prepared, SceneGraphPredictor
from fnet_jax.inference.scene_graph import SceneGraph
from fnet_jax.results import ResultsWriter

# Images that are read ahead: enough to keep the device busy, few enough for any memory.
_AHEAD = 2


class Outcome(NamedTuple):
    """What became of the files.

    Attributes:
      count: images (frames of videos are images) with a scene graph.
      skipped: (name, reason) of files, or frames, without.
      pages: the HTML files written.
    """

    count: int
    skipped: list[tuple[str, str]]
    pages: list[pathlib.Path]


class _Item(NamedTuple):
    """An image that was read, or the reason why not."""

    name: str
    image: np.ndarray | None
    prepared: Prepared | None
    reason: str


def predict_files(
    predictor: SceneGraphPredictor,
    sources: Sequence[Source],
    output: str | os.PathLike,
    *,
    every: int = 1,
    boxes: Mapping[str, GivenBoxes] | None = None,
    pictures: bool = True,
    top_k: int = 20,
    min_score: float = 0.0,
) -> Outcome:
    """Writes `output`/graphs.jsonl, pictures/NAME.png and index.html for images and videos.

    Args:
      predictor: finds the graphs.
      sources: image files and videos.
      output: folder, made if missing; files of an earlier run are replaced.
      every: of videos, every so many frames; they are called VIDEO#NUMBER.
      boxes: image name (as in the results, or without folders) -> its objects; None to find them.
      pictures: whether to draw each image beside its graph.
      top_k, min_score: what pictures show, and the page at first. The lines hold everything.

    Raises:
      UserError: `output` cannot be written.
    """
    output = pathlib.Path(output)
    with writing(output, "--output"):
        output.mkdir(parents=True, exist_ok=True)
    skipped: list[tuple[str, str]] = []
    count = 0
    total = frame_count([source.path for source in sources], every)
    # disable=None: no bar unless the output is a terminal.
    bar = tqdm(total=total, unit="image", desc="predict", disable=None, file=sys.stderr)

    def entries(writer) -> Iterator[tuple[np.ndarray, dict]]:
        nonlocal count
        for image, graph in _graphs(predictor, sources, every, boxes, skipped):
            line = graph.to_dict()
            writer.write(line)
            if pictures:
                picture = output / "pictures" / f"{graph.image}.png"
                graph.plot(image, picture, top_k=top_k, min_score=min_score)
            count += 1
            bar.update()
            yield image, line

    with bar, ResultsWriter(output / "graphs.jsonl") as writer:
        found = entries(writer)
        first = next(found, None)
        pages = []
        if first is not None:
            everything = itertools.chain([first], found)
            pages = write_page(output / "index.html", everything, top_k=top_k, min_score=min_score)
    return Outcome(count, skipped, pages)


def _graphs(predictor, sources, every, boxes, skipped) -> Iterator[tuple[np.ndarray, SceneGraph]]:
    """(original image, graph) of everything that can be read; `skipped` receives the rest."""
    items = _read_ahead(_items(predictor, sources, every, boxes))
    while chunk := list(itertools.islice(items, jax.local_device_count())):
        skipped += [(item.name, item.reason) for item in chunk if item.prepared is None]
        good = [item for item in chunk if item.prepared is not None]
        graphs = predictor.run([item.prepared for item in good])
        yield from ((item.image, graph) for item, graph in zip(good, graphs, strict=True))


def _items(predictor, sources, every, boxes) -> Iterator[_Item]:
    def item(name: str, image: np.ndarray) -> _Item:
        given = None
        if boxes is not None:
            given = boxes.get(name, boxes.get(pathlib.PurePosixPath(name).name))
            if given is None:
                raise UserError("the file of boxes has no line for it")
        return _Item(name, image, predictor.prepare(image, name, given), "")

    for source in sources:
        name = source.name
        try:
            if not is_video(source.path):
                yield item(name, read_image(source.path))
                continue
            for number, frame in read_frames(source.path, every):
                name = f"{source.name}#{number:06d}"
                yield item(name, frame)
        except UserError as error:
            yield _Item(name, None, None, str(error))


def _read_ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """The same items, made by a thread while the device is at work on those before."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        waiting = collections.deque(thread.submit(next, items, None) for _ in range(_AHEAD))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next, items, None))
            yield item
