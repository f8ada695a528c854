"""What a picture or page of a scene graph shows: every object once, one predicate per pair.

Works on the dicts of `fnet_jax.predictions`, on detections and annotations alike.
"""

from collections.abc import Sequence
from typing import NamedTuple

from fnet_jax.metrics import overlaps

# Detections of one class that overlap more than this are shown as one object. Duplicates are
# ranked down by the network, never removed.
_SAME_OBJECT = 0.5


class Relation(NamedTuple):
    """The best predicate between two objects."""

    place: int  # in the ranking of relations, from 1; there may be gaps
    subject: int  # representative, counts `graph["objects"]`
    object: int
    predicate: str
    score: float


def select(graph: dict, top_k: int, min_score: float) -> tuple[list[int], list[Relation]]:
    """What to show of a graph.

    Args:
      graph: a line, see `fnet_jax.predictions`.
      top_k: at most so many relations: the first in the ranking.
      min_score: relations (or objects, if there is no relation to show) below this are left out.

    Returns: the objects of the relations, ascending, or, if there is no relation, the `top_k`
      best; and the relations.
    """
    objects, same = graph["objects"], representatives(graph["objects"])
    chosen = [
        relation
        for relation in relations(graph, same)
        if relation.place <= top_k and relation.score >= min_score
    ]
    indices = {end for relation in chosen for end in (relation.subject, relation.object)}
    if not chosen:
        best = sorted(set(same), key=lambda index: -objects[index]["score"])[:top_k]
        indices = {index for index in best if objects[index]["score"] >= min_score}
    return sorted(indices), chosen


def relations(graph: dict, same: Sequence[int]) -> list[Relation]:
    """The relations of a graph as they are ranked: of each pair of objects the first.

    Args:
      graph: a line, see `fnet_jax.predictions`.
      same: the `representatives` of its objects.
    """
    found: dict[tuple[int, int], Relation] = {}
    between_duplicates: set[int] = set()
    for triplet in graph["triplets"]:
        ends = triplet["subject"], triplet["object"]
        pair = same[ends[0]], same[ends[1]]
        if pair[0] == pair[1] and ends[0] != ends[1]:
            # Two detections of one object: it takes its place, but relates nothing to itself.
            between_duplicates.add(pair[0])
        elif pair not in found:
            place = len(found) + len(between_duplicates) + 1
            found[pair] = Relation(place, *pair, triplet["predicate"], triplet["score"])
    return list(found.values())


def representatives(objects: Sequence[dict]) -> list[int]:
    """For each object the best-scored one of its class that it duplicates, or itself."""
    if not objects:
        return []
    iou = overlaps([o["box"] for o in objects], [o["box"] for o in objects])
    representative = list(range(len(objects)))
    kept: list[int] = []
    for index in sorted(range(len(objects)), key=lambda index: -objects[index]["score"]):
        same = [
            other
            for other in kept
            if objects[other]["class"] == objects[index]["class"]
            and iou[other, index] > _SAME_OBJECT
            # Equal scores: both are annotated, or neither is the better one.
            and objects[other]["score"] > objects[index]["score"]
        ]
        if same:
            representative[index] = max(same, key=lambda other: iou[other, index])
        else:
            kept.append(index)
    return representative
