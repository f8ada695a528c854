"""The prediction for one image, whoever made it, and its line in a JSONL file.

A line is one image:

    {"schema": "fnet-jax/scene-graph", "version": 1, "image": file name, "height": int,
     "width": int, "objects": [{"class": name, "box": [x1, y1, x2, y2], "score": float}, ...],
     "triplets": [{"subject": i, "predicate": name, "object": j, "score": float}, ...],
     "rankings": {"fnet": [k, ...], "sgb": [k, ...], "sgb_unconstrained": [k, ...]}}

Boxes are inclusive pixels of the original image; i and j count `objects` from 0, and triplets are
listed from the most certain to the least. `rankings` is optional: the positions in `triplets` that
a protocol is to look at, in its order. A protocol without a ranking takes all triplets as they are
listed and applies its own rule (docs/protocols.md). So do `height`, `width` and all scores have no
influence on a metric.
"""

import dataclasses
import reprlib
from collections.abc import Mapping, Sequence

import numpy as np

from fnet_jax.errors import UserError
from fnet_jax.structures import PaddedGraph

SCHEMA = "fnet-jax/scene-graph"
VERSION = 1
# Triplets as F-Net ranks them; the best predicate of each pair; all predicates of all pairs.
RANKINGS = ("fnet", "sgb", "sgb_unconstrained")

_SCORE_DIGITS = 6

# Quotes wrong values in messages: however long or deep they are, in one short line.
_QUOTES = reprlib.Repr()
_QUOTES.maxlevel, _QUOTES.maxlist, _QUOTES.maxdict = 2, 5, 2
_QUOTES.maxstring, _QUOTES.maxlong, _QUOTES.maxother = 60, 30, 60


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Objects and ranked triplets of one image; NumPy arrays without padding."""

    boxes: np.ndarray  # (n, 4) float32, inclusive pixels of the original image
    classes: np.ndarray  # (n,) int64
    scores: np.ndarray  # (n,) float32
    triplets: np.ndarray  # (t, 3) int64 rows (subject, object, predicate), best first
    triplet_scores: np.ndarray  # (t,) float32
    rankings: Mapping[str, np.ndarray]  # of RANKINGS: positions in `triplets`

    def ranked(self, ranking: str) -> np.ndarray:
        """Triplet rows in the order of a ranking, of the list where there is no such ranking."""
        if ranking in self.rankings:
            return self.triplets[self.rankings[ranking]]
        return self.triplets


def from_graph(graph: PaddedGraph) -> Prediction:
    """The prediction in one image's PaddedGraph (no batch axis), without its padding.

    Raises:
      ValueError: a triplet in use refers to an object slot that is not.
    """
    object_mask = np.asarray(graph.object_mask)
    slots = np.flatnonzero(object_mask)
    position = np.cumsum(object_mask) - 1
    lists = {"fnet": (graph.subjects, graph.objects, graph.predicates, graph.triplet_scores)}
    masks = {"fnet": graph.triplet_mask}
    for name, ranked in (("sgb", graph.constrained), ("sgb_unconstrained", graph.unconstrained)):
        if ranked is not None:
            lists[name] = (ranked.subjects, ranked.objects, ranked.predicates, ranked.scores)
            masks[name] = ranked.mask
    rows, scores = [], []
    for name, columns in lists.items():
        used = np.asarray(masks[name])
        *triplet, score = (np.asarray(column)[used] for column in columns)
        if not (object_mask[triplet[0]].all() and object_mask[triplet[1]].all()):
            raise ValueError("a triplet refers to an object that does not exist")
        ends = [position[end] for end in triplet[:2]]
        rows.append(np.stack([*ends, triplet[2]], axis=1).astype(np.int64))
        scores.append(score)
    listed, first, place = np.unique(
        np.concatenate(rows), axis=0, return_index=True, return_inverse=True
    )
    order = np.argsort(first)  # As first met: F-Net's list leads.
    rank = np.argsort(order)[place.reshape(-1)]
    ends = np.cumsum([len(part) for part in rows])[:-1]
    return Prediction(
        boxes=np.asarray(graph.boxes)[slots],
        classes=np.asarray(graph.classes)[slots].astype(np.int64),
        scores=np.asarray(graph.scores)[slots],
        triplets=listed[order],
        triplet_scores=np.concatenate(scores)[first[order]],
        rankings=dict(zip(lists, np.split(rank, ends), strict=True)),
    )


def from_annotation(record: Mapping) -> Prediction:
    """An annotated image as if it had been predicted, all scores 1.

    Args:
      record: `boxes` (g, 4), `classes` (g,) and `relationships` (m, 3) rows (subject, object,
        predicate); all of them are kept, in order.
    """
    relationships = np.asarray(record["relationships"], np.int64).reshape(-1, 3)
    return Prediction(
        boxes=np.asarray(record["boxes"], np.float32).reshape(-1, 4),
        classes=np.asarray(record["classes"], np.int64),
        scores=np.ones(len(record["classes"]), np.float32),
        triplets=relationships,
        triplet_scores=np.ones(len(relationships), np.float32),
        rankings={},
    )


def to_line(
    prediction: Prediction,
    image: str,
    height: int,
    width: int,
    object_names: Sequence[str],
    predicate_names: Sequence[str],
) -> dict:
    """The dict of a JSONL line; boxes keep all digits, so that overlaps come out the same again.

    Args:
      prediction: of the image.
      image: file name.
      height, width: of the original image, pixels.
      object_names, predicate_names: by class index, entry 0 being the background.
    """
    line = {
        "schema": SCHEMA,
        "version": VERSION,
        "image": str(image),
        "height": int(height),
        "width": int(width),
        "objects": [
            {
                "class": object_names[label],
                "box": [_shortest(side) for side in box],
                "score": _significant(score),
            }
            for label, box, score in zip(
                prediction.classes.tolist(),
                prediction.boxes,
                prediction.scores.tolist(),
                strict=True,
            )
        ],
        "triplets": [
            {
                "subject": subject,
                "predicate": predicate_names[predicate],
                "object": object_,
                "score": _significant(score),
            }
            for (subject, object_, predicate), score in zip(
                prediction.triplets.tolist(), prediction.triplet_scores.tolist(), strict=True
            )
        ],
    }
    if prediction.rankings:
        line["rankings"] = {name: rank.tolist() for name, rank in prediction.rankings.items()}
    return line


class LineReader:
    """Turns lines into predictions, and says in one sentence what is wrong with a bad one."""

    def __init__(self, object_names: Sequence[str], predicate_names: Sequence[str]):
        """Names by class index, entry 0 being the background, which nobody may predict."""
        self._classes = {name: index for index, name in enumerate(object_names) if index}
        self._predicates = {name: index for index, name in enumerate(predicate_names) if index}

    def read(self, line: object) -> tuple[str, Prediction]:
        """The image's file name and the prediction in a decoded line.

        Raises:
          UserError: what is missing, unknown, of another type or out of range.
        """
        if not isinstance(line, dict):
            raise UserError("it is not a JSON object")
        version = line.get("version")
        # JSON's true and 1.0 are not the version 1, though Python calls them equal.
        if line.get("schema") != SCHEMA or type(version) is not int or version != VERSION:
            raise UserError(f'it needs "schema": {SCHEMA!r} and "version": {VERSION}')
        image = _field(line, "image", str, "it")
        objects = _field(line, "objects", list, "it")
        triplets = _field(line, "triplets", list, "it")
        read_objects = [self._object(item, index) for index, item in enumerate(objects)]
        read_triplets = [
            self._triplet(item, index, len(objects)) for index, item in enumerate(triplets)
        ]
        labels, boxes, scores = zip(*read_objects, strict=True) if objects else ((), (), ())
        rows, triplet_scores = zip(*read_triplets, strict=True) if triplets else ((), ())
        return image, Prediction(
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            classes=np.array(labels, np.int64),
            scores=np.array(scores, np.float32),
            triplets=np.array(rows, np.int64).reshape(-1, 3),
            triplet_scores=np.array(triplet_scores, np.float32),
            rankings=_rankings(line.get("rankings", {}), len(triplets)),
        )

    def _object(self, item: object, index: int) -> tuple[int, list[float], float]:
        where = f"object {index}"
        name = _field(item, "class", str, where)
        if name not in self._classes:
            raise UserError(
                f"{where} has the class {quoted(name)}, which the dataset does not have"
            )
        box = _field(item, "box", list, where)
        if len(box) != 4 or not all(map(_is_number, box)) or box[2] < box[0] or box[3] < box[1]:
            raise UserError(f"{where} has the box {quoted(box)}, not [x1, y1, x2, y2] in pixels")
        return self._classes[name], box, _score(item, where)

    def _triplet(self, item: object, index: int, count: int) -> tuple[tuple[int, int, int], float]:
        where = f"triplet {index}"
        name = _field(item, "predicate", str, where)
        if name not in self._predicates:
            raise UserError(
                f"{where} has the predicate {quoted(name)}, which the dataset does not have"
            )
        ends = [_field(item, role, int, where) for role in ("subject", "object")]
        if not all(0 <= end < count for end in ends):
            raise UserError(
                f"{where} relates object {quoted(ends[0])} to {quoted(ends[1])}, but there are "
                f"{count} objects"
            )
        return (*ends, self._predicates[name]), _score(item, where)


def quoted(value: object) -> str:
    """A value from a line as an error message shows it: shortened, printable, without line ends."""
    return _QUOTES.repr(value)


def _field(item: object, name: str, kind: type, where: str):
    value = item.get(name) if isinstance(item, dict) else None
    # JSON's true is no number, but Python's is.
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = {str: "a string", list: "a list", int: "an integer"}[kind]
        raise UserError(f"{where} needs {name!r} to be {wanted}, not {quoted(value)}")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _score(item: dict, where: str) -> float:
    score = item.get("score", 1.0)
    if not _is_number(score):
        raise UserError(f"{where} has the score {quoted(score)}, which is no finite number")
    return score


def _rankings(content: object, count: int) -> dict[str, np.ndarray]:
    if not isinstance(content, dict) or not set(content) <= set(RANKINGS):
        raise UserError(f"'rankings' may have the entries {', '.join(RANKINGS)} only")
    for name, rank in content.items():
        integers = isinstance(rank, list) and all(type(place) is int for place in rank)
        if not integers or not all(0 <= place < count for place in rank):
            raise UserError(f"ranking {name!r} must list positions of the {count} triplets")
        if len(set(rank)) < len(rank):
            raise UserError(f"ranking {name!r} lists a triplet twice")
    return {name: np.array(rank, np.int64) for name, rank in content.items()}


def _shortest(value: np.float32) -> float:
    """The float whose few digits give the same float32 again."""
    return float(str(value))


def _significant(score: float) -> float:
    """Rounded to a few significant digits, not decimals: scores far down the ranking are tiny."""
    return float(f"{score:.{_SCORE_DIGITS}g}")
