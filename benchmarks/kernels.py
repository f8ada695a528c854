"""The kernels at the model's real sizes, beside torchvision, NumPy and XLA's own operators."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import inputs, peers
from benchmarks.contests import OURS, Contest
from fnet_jax import kernels, rpn
from fnet_jax.anchors import shifted_anchors
from fnet_jax.backbone import VGG16
from fnet_jax.detect import ProposalOptions, TestOptions

_FROZEN = 4  # convolutions that are never trained
_REGIONS = 256  # subgraphs, in the smallest bucket
_VGG_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


def _jitted(function, *arrays):
    """A call of the compiled function on arrays that lie on the device already."""
    compiled, arrays = jax.jit(function), jax.device_put(arrays)
    return lambda: compiled(*arrays)


def nms() -> Iterator[Contest]:
    """12000 boxes to 300, to 2000, and to all that survive; ranked ones need no sorting."""
    count = inputs.PRE_NMS
    cases = (
        ("test", *inputs.TEST_NMS, 40.0),
        ("train", *inputs.TRAIN_NMS, 15.0),
        ("no limit", 0.6, count, 6.0),
    )
    for kind, generate in (
        ("trained", inputs.trained_boxes),
        ("random", inputs.random_boxes),
    ):
        rng = np.random.default_rng(0)
        boxes, scores = generate(rng, count), inputs.descending_scores(rng, count)
        for case, threshold, kept, goal in cases:
            run = functools.partial(kernels.nms, iou_threshold=threshold, max_output=kept)
            for order, rank_by in (("", scores), ("ranked ", None)):
                ways = {OURS: _jitted(run, boxes, rank_by)}
                if peers.AVAILABLE:
                    ways["torchvision"] = peers.nms(boxes, scores, threshold, kept)
                name = f"NMS {count} -> {kept}, {order}{kind} boxes ({case})"
                yield Contest(name, ways, goal=goal)


def triplet_nms() -> Iterator[Contest]:
    """10000 ranked triplets to 100, beside a NumPy loop."""
    options = TestOptions()
    count, kept = options.max_candidates, options.max_triplets
    rng = np.random.default_rng(0)
    boxes, classes = inputs.detections(rng, inputs.TEST_OBJECTS)
    subjects, others = rng.integers(0, inputs.TEST_OBJECTS, (2, count))
    predicates = (50 * rng.beta(0.4, 3.0, count)).astype(np.int32)  # few are frequent
    triplets = boxes[subjects], boxes[others], classes[subjects], predicates, classes[others]
    run = functools.partial(kernels.triplet_nms, iou_threshold=options.triplet_nms, max_output=kept)
    ways = {
        OURS: _jitted(run, *triplets),
        "numpy": functools.partial(thin_triplets, *triplets, options.triplet_nms, kept),
    }
    yield Contest(f"triplet NMS {count} -> {kept}", ways)


def thin_triplets(
    subject_boxes: np.ndarray,
    object_boxes: np.ndarray,
    subject_classes: np.ndarray,
    predicates: np.ndarray,
    object_classes: np.ndarray,
    threshold: float,
    slots: int,
) -> np.ndarray:
    """A plain NumPy loop: pick the best triplet left, drop those it suppresses; kept indices."""
    names = np.ravel_multi_index((subject_classes, predicates, object_classes), (1000,) * 3)
    left, kept = np.arange(len(names)), []
    while len(left) and len(kept) < slots:
        best, left = left[0], left[1:]
        kept.append(best)
        same = np.flatnonzero(names[left] == names[best])
        near = inputs.iou(subject_boxes[best], subject_boxes[left[same]]) > threshold
        near &= inputs.iou(object_boxes[best], object_boxes[left[same]]) > threshold
        left = np.delete(left, same[near])
    return np.array(kept)


def propose() -> Iterator[Contest]:
    """Proposals of an image from the maps of its RPN: decode, rank, suppress."""
    options = ProposalOptions()
    foreground, deltas, anchors = inputs.rpn_outputs(np.random.default_rng(0))
    im_info = np.array([*inputs.IMAGE, 1, *inputs.IMAGE], np.float32)

    def run(foreground, deltas, im_info):
        return rpn.propose(
            foreground, deltas, anchors, im_info, inputs.MAP, **dataclasses.asdict(options)
        )

    ways = {OURS: _jitted(run, foreground, deltas, im_info)}
    if peers.AVAILABLE:
        shifted = np.array(shifted_anchors(anchors, *inputs.MAP))
        ways["torchvision"] = peers.propose(
            foreground.ravel(), deltas.reshape(-1, 4), shifted, inputs.IMAGE, options
        )
    yield Contest(f"proposals of {foreground.size} anchors", ways)


def clustering() -> Iterator[Contest]:
    """Subgraphs of all pairs of objects, beside a NumPy loop over the distinct pairs."""
    cases = (
        ("trained", inputs.TEST_OBJECTS, True, 512, 2.0),
        ("untrained", inputs.TEST_OBJECTS, False, 1024, None),
        ("training", inputs.TRAIN_OBJECTS, True, 1024, None),
    )
    for kind, count, trained, capacity, goal in cases:
        rng = np.random.default_rng(0)
        boxes = inputs.objects(rng, count, trained=trained)
        scores = inputs.descending_scores(rng, count)
        run = functools.partial(kernels.cluster_pairs, iou_threshold=0.5, capacity=capacity)
        ways = {
            OURS: _jitted(run, boxes, scores),
            "numpy": functools.partial(cluster_distinct_pairs, boxes, scores, 0.5),
        }
        yield Contest(f"clustering {count} objects, {kind}", ways, goal=goal)


def cluster_distinct_pairs(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """A plain NumPy loop over the pairs i <= j: `[pairs]` the cluster of each."""
    first, second = np.triu_indices(len(boxes))
    low = np.minimum(boxes[first, :2], boxes[second, :2])
    high = np.maximum(boxes[first, 2:], boxes[second, 2:])
    union = np.concatenate([low, high], axis=1)
    area = (union[:, 2] - union[:, 0] + 1) * (union[:, 3] - union[:, 1] + 1)
    left = np.argsort(-scores[first] * scores[second], kind="stable")
    cluster, count = np.full(len(first), -1), 0
    while len(left):
        best, others = union[left[0]], union[left]
        width = np.minimum(best[2], others[:, 2]) - np.maximum(best[0], others[:, 0]) + 1
        height = np.minimum(best[3], others[:, 3]) - np.maximum(best[1], others[:, 1]) + 1
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        absorbed = shared >= threshold * (area[left[0]] + area[left] - shared)
        cluster[left[absorbed]] = count
        left, count = left[~absorbed], count + 1
    return cluster


def roi_align() -> Iterator[Contest]:
    """Objects and subgraphs from a map of 37 x 50 x 512, forward and backward."""
    rng = np.random.default_rng(0)
    features = inputs.features(rng)
    for count, trained in ((inputs.TEST_OBJECTS, True), (500, False)):
        rois = inputs.objects(rng, inputs.TEST_OBJECTS, trained=trained)
        rois = np.resize(rois, (count, 4))
        for pool_size in inputs.POOL_SIZES:
            pool = functools.partial(kernels.roi_align, pool_size=pool_size, spatial_scale=1 / 16)
            cotangent = rng.normal(size=(count, pool_size, pool_size, inputs.CHANNELS))

            def gradient(x, rois, cotangent, pool=pool):
                return jax.vjp(lambda x: pool(x, rois), x)[1](cotangent)

            stated = count == inputs.TEST_OBJECTS and pool_size == 7
            ways = {OURS: _jitted(pool, features, rois)}
            backward = {OURS: _jitted(gradient, features, rois, cotangent.astype(np.float32))}
            if peers.AVAILABLE:
                forward, both = peers.roi_align(features, rois, pool_size)
                ways["torchvision"], backward["torchvision (with forward)"] = forward, both
            name = f"ROI-align {count} ROIs P={pool_size}"
            yield Contest(f"{name} forward", ways, goal=2.5 if stated else None)
            yield Contest(f"{name} backward", backward, goal=6.0 if stated else None)


def backbone() -> Iterator[Contest]:
    """VGG16 on one image, forward, and with the gradients that training needs."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(*inputs.IMAGE, 3)).astype(np.float32)
    model = VGG16(_VGG_WIDTHS)
    params = jax.jit(model.init)(jax.random.key(0), image[:32, :32], (32, 32))["params"]
    names = [f"conv{b}_{i}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]
    filters = [np.array(params[name]["kernel"]) for name in names]

    def forward(params, image):
        return model.apply({"params": params}, image, inputs.IMAGE)

    def gradients(params, image):
        def total(params):
            y = model.apply({"params": params}, image, inputs.IMAGE, frozen_layers=_FROZEN)
            return jnp.sum(y)

        return jax.grad(total)(params)

    ways, both = {OURS: _jitted(forward, params, image)}, {OURS: _jitted(gradients, params, image)}
    if peers.AVAILABLE:
        ways["torch"], both["torch"] = peers.vgg16(image, filters, _FROZEN)
    yield Contest("VGG16 600x800 forward", ways, goal=1.3)
    yield Contest("VGG16 600x800 forward + backward", both, goal=1.4)


def region_convolutions() -> Iterator[Contest]:
    """One 3x3 convolution of the subgraphs' maps beside XLA's own, forward and both gradients."""
    rng = np.random.default_rng(0)
    channels = inputs.CHANNELS
    kernel = rng.normal(size=(3, 3, channels, channels)) * (2 / 9 / channels) ** 0.5
    for pool_size in inputs.POOL_SIZES:
        shape = (_REGIONS, pool_size, pool_size, channels)
        x, cotangent = np.maximum(rng.normal(size=shape), 0), rng.normal(size=shape)
        arrays = [a.astype(np.float32) for a in (x, kernel, cotangent)]
        forward, backward = {}, {}
        for name, convolve in ((OURS, kernels.convolve), ("XLA", _convolve_by_xla)):

            def gradients(x, kernel, cotangent, convolve=convolve):
                return jax.vjp(convolve, x, kernel)[1](cotangent)

            forward[name] = _jitted(convolve, *arrays[:2])
            backward[name] = _jitted(gradients, *arrays)
        title = f"3x3 convolution of {_REGIONS} maps P={pool_size}"
        yield Contest(f"{title} forward", forward)
        yield Contest(f"{title} backward", backward)


def _convolve_by_xla(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
