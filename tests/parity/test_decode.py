"""Reading the graph off stored network outputs: ranked triplets equal to the golden ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnet_jax.decode import (
    Ranking,
    best_predicates,
    class_boxes,
    decode_objects,
    rank_triplets,
)
from fnet_jax.structures import Pairs
from tests.parity.golden_models import NAMES, arrays, options

pytestmark = pytest.mark.parametrize("name", NAMES)

CASES = [
    ("nogt_", None, None),
    ("nogt_", None, 0.4),
    ("nogt_", 0.4, None),
    ("nogt_", 0.4, 0.4),
    ("gt_", None, None),
]


def label(threshold):
    return "off" if threshold is None else str(round(threshold * 100))


@pytest.mark.parametrize(("mode", "object_nms", "triplet_nms"), CASES)
def test_interpret(name, mode, object_nms, triplet_nms):
    g, answer = arrays("model", name), arrays("interpret", name)
    prefix = f"{mode}nms{label(object_nms)}_tri{label(triplet_nms)}_"
    im_info = answer["im_info"]
    rois = g[mode + "object_rois"][:, 1:]
    deltas = g[mode + "bbox_object"].reshape(len(rois), -1, 4)
    subjects, others, subgraphs = jnp.asarray(g[mode + "mat_phrase"].T)
    pairs = Pairs(subjects, others, subgraphs, jnp.ones(len(subjects), bool))

    @jax.jit
    def read():
        if mode == "gt_":
            candidates = jnp.broadcast_to((rois / im_info[2])[:, None], deltas.shape)
        else:
            candidates = class_boxes(rois, deltas, im_info)
        objects = decode_objects(
            g[mode + "cls_prob_object"],
            g[mode + "reranked_score"][:, 0],
            candidates,
            jnp.ones(len(rois), bool),
            object_nms=object_nms,
        )
        ranking = Ranking(
            predicates_per_pair=int(answer["topk"]),
            max_triplets=10000,
            triplet_threshold=triplet_nms,
            predicate_only=mode == "gt_",
        )
        predicates = best_predicates(g[mode + "cls_prob_predicate"], ranking.predicates_per_pair)
        triplets = rank_triplets(predicates, pairs, objects, ranking)
        return objects, triplets

    objects, triplets = read()
    used = np.asarray(objects.mask)
    np.testing.assert_allclose(objects.boxes[used], answer[prefix + "boxes"], rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(objects.scores[used], answer[prefix + "scores"])
    np.testing.assert_array_equal(objects.classes[used], answer[prefix + "classes"])
    kept = np.asarray(triplets.mask)
    np.testing.assert_array_equal(triplets.subjects[kept], answer[prefix + "sub"])
    np.testing.assert_array_equal(triplets.objects[kept], answer[prefix + "obj"])
    np.testing.assert_array_equal(triplets.predicates[kept], answer[prefix + "pred"])
    np.testing.assert_array_equal(triplets.scores[kept], answer[prefix + "total"])
    assert options(name)["interpret_topk"] == int(answer["topk"])
