"""A web page of scene graphs in one file: images, graphs, style and script, no network.

Class names, predicates and file names are anyone's text. They reach the page as JSON in a data
block that nothing in them can close, and the document through `textContent` and attributes only; a
Content-Security-Policy allows this page's own script and style, by their hashes, and nothing else.
"""

import base64
import hashlib
import html
import itertools
import json
import os
import pathlib
import re
import urllib.parse
from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from fnet_jax.files import partial_of, writing
from fnet_jax.inference.selection import relations, representatives

_LONG_SIDE = 1280  # pixels at most of an embedded image
_THUMBNAIL_SIDE = 144
_QUALITY = 88  # JPEG, 0 to 100
_THUMBNAIL_QUALITY = 75

_ASSETS = pathlib.Path(__file__).parent


def page_html(
    entries: Iterable[tuple[np.ndarray, dict]],
    *,
    title: str = "Scene graphs",
    top_k: int = 20,
    min_score: float = 0.0,
) -> str:
    """A self-contained HTML page; works as a file and as the `srcdoc` of a frame.

    Args:
      entries: pairs of an original image (h, w, 3) uint8 RGB and its graph, a line of
        `fnet_jax.predictions`, whose boxes are in the pixels of that image.
      title: of the page.
      top_k: so many of the best relations of an image are shown at first.
      min_score: relations below this are not shown at first.
    """
    return _html([_embedded(*entry) for entry in entries], title, top_k, min_score, links=[])


def write_page(
    path: str | os.PathLike,
    entries: Iterable[tuple[np.ndarray, dict]],
    *,
    title: str = "Scene graphs",
    top_k: int = 20,
    min_score: float = 0.0,
    images_per_page: int = 60,
) -> list[pathlib.Path]:
    """Writes `page_html` to files, which appear complete and all at once.

    Args:
      path: of the page; missing folders are made.
      entries, title, top_k, min_score: see `page_html`; each image is let go once it is encoded.
      images_per_page: images beyond go to PATH_2.html, PATH_3.html, ..., linked to each other.

    Returns: the pages, in order.

    Raises:
      UserError: a file cannot be written.
    """
    first = pathlib.Path(path)
    pages: list[pathlib.Path] = []
    try:
        with writing(first):
            first.parent.mkdir(parents=True, exist_ok=True)
            for batch, last in _batches(itertools.starmap(_embedded, entries), images_per_page):
                number = len(pages) + 1
                links = [("Previous page", _page_path(first, number - 1))] if pages else []
                if not last:
                    links.append(("Next page", _page_path(first, number + 1)))
                pages.append(_page_path(first, number))
                text = _html(batch, title, top_k, min_score, links)
                partial_of(pages[-1]).write_text(text, encoding="utf-8")
            for page in pages:
                os.replace(partial_of(page), page)
    finally:
        for page in pages:
            partial_of(page).unlink(missing_ok=True)
    return pages


def _batches(entries: Iterable, size: int) -> Iterator[tuple[list, bool]]:
    """Lists of up to `size` entries, at least one list, and whether it is the last."""
    iterator = iter(entries)
    batch = list(itertools.islice(iterator, size))
    while following := list(itertools.islice(iterator, size)):
        yield batch, False
        batch = following
    yield batch, True


def _page_path(first: pathlib.Path, number: int) -> pathlib.Path:
    return first if number == 1 else first.with_name(f"{first.stem}_{number}{first.suffix}")


def _html(images: list[dict], title: str, top_k: int, min_score: float, links: list) -> str:
    """The page of `_embedded` images, with `links` (text, path) to other pages beside it."""
    style, script = ((_ASSETS / name).read_text("utf-8") for name in ("page.css", "page.js"))
    data = {"topK": top_k, "minScore": min_score, "images": images}
    parts = {
        "title": html.escape(title),
        "policy": (
            "default-src 'none'; img-src data:; "
            f"style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
            "base-uri 'none'; form-action 'none'"
        ),
        "style": style,
        "script": script,
        "data": _json(data),
        "links": "".join(
            f'<a href="./{html.escape(urllib.parse.quote(target.name))}">{html.escape(text)}</a>'
            for text, target in links
        ),
    }
    template = (_ASSETS / "page.html").read_text("utf-8")
    # In one pass: what is filled in is not looked through for further places to fill.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)


def _hash(text: str) -> str:
    """How a policy names an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(data: object) -> str:
    """JSON that can stand in a <script>: no tag or comment begins or ends in it."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _embedded(image: np.ndarray, graph: dict) -> dict:
    """What the script needs of an image: pictures, objects and relations, and the line itself."""
    same = representatives(graph["objects"])
    ranked = relations(graph, same)
    # Objects are numbered and coloured as the ranking meets them, the others by their scores, so
    # that the first few numbers and colours are those mostly seen.
    met = [end for relation in ranked for end in (relation.subject, relation.object)]
    rest = sorted(set(same), key=lambda index: -graph["objects"][index]["score"])
    order = list(dict.fromkeys(met + rest))
    place = {index: position for position, index in enumerate(order)}
    objects = [graph["objects"][index] for index in order]
    height, width = image.shape[:2]
    return {
        "picture": _data_uri(image, _LONG_SIDE, _QUALITY),
        "thumbnail": _data_uri(image, _THUMBNAIL_SIDE, _THUMBNAIL_QUALITY),
        "width": width,
        "height": height,
        "objects": [
            {"name": name, "box": found["box"], "score": found["score"]}
            for name, found in zip(_numbered(objects), objects, strict=True)
        ],
        "relations": [
            relation._replace(
                subject=place[relation.subject], object=place[relation.object]
            )._asdict()
            for relation in ranked
        ],
        "line": graph,
    }


def _numbered(objects: list[dict]) -> list[str]:
    """Class names, with a number where there are several of a class: "horse 1", "rider"."""
    totals: dict[str, int] = {}
    numbers = []
    for found in objects:
        totals[found["class"]] = totals.get(found["class"], 0) + 1
        numbers.append(totals[found["class"]])
    return [
        f"{found['class']} {number}" if totals[found["class"]] > 1 else found["class"]
        for found, number in zip(objects, numbers, strict=True)
    ]


def _data_uri(image: np.ndarray, side: int, quality: int) -> str:
    """An image (h, w, 3) uint8 RGB as JPEG, made smaller if its longer side exceeds `side`."""
    scale = side / max(image.shape[:2])
    if scale < 1:
        # Never less than a pixel, however long and thin the image is.
        size = [max(1, round(length * scale)) for length in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    # Full colour resolution: drawn and small images are looked at enlarged.
    options = [
        *(cv2.IMWRITE_JPEG_QUALITY, quality),
        *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
    ]
    encoded = cv2.imencode(".jpg", bgr, options)[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded).decode()
