"""Image -> graph at full size, in stages and whole; with untrained weights, so all of the work."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import inputs, models
from benchmarks.contests import OURS, Contest
from fnet_jax import builder
from fnet_jax.detect import detect, normalise, valid_sizes
from fnet_jax.kernels import cluster_pairs
from fnet_jax.pruning import PAIR_CHUNK
from fnet_jax.rpn import propose
from fnet_jax.subgraphs import keep_best, pairs_among


def stages() -> Iterator[Contest]:
    """Each stage by itself, on what the stages before it really give."""
    model, params, example = models.model(), models.untrained_params(), models.example()
    options = builder.test_options(models.config())
    size, map_size = (tuple(map(int, pair)) for pair in valid_sizes(example["im_info"]))

    def stage(name, function, *arrays, multiply_adds=None):
        """A contest of one way, and the stage's result."""
        compiled, arrays = jax.jit(function), jax.device_put(arrays)
        result = jax.block_until_ready(compiled(*arrays))
        return Contest(name, {OURS: lambda: compiled(*arrays)}, multiply_adds=multiply_adds), result

    def method(function, **kwargs):
        return lambda params, *args: model.apply(
            {"params": params}, *args, **kwargs, method=function
        )

    image = normalise(example["image"], size, options.mean, options.std)
    contest, features = stage(
        "backbone",
        lambda p, x: model.apply({"params": p}, x, size, method=model.features),
        params,
        image,
        multiply_adds=_vgg_multiply_adds(),
    )
    yield contest
    contest, (logits, deltas) = stage("RPN head", method(model.rpn_outputs), params, features)
    yield contest
    contest, proposals = stage(
        "proposals (top 12000, NMS)",
        lambda logits, deltas: propose(
            jax.nn.softmax(logits, axis=2)[:, :, 1],
            deltas,
            model.base_anchors,
            example["im_info"],
            map_size,
            **dataclasses.asdict(options.proposals),
        ),
        logits,
        deltas,
    )
    yield contest
    objects = keep_best(proposals, options.max_objects)
    capacity = options.subgraph_capacities[-1]
    contest, clusters = stage(
        "subgraphs",
        lambda boxes, scores: cluster_pairs(boxes, scores, options.subgraph_nms, capacity),
        objects.boxes,
        objects.scores,
    )
    yield contest
    slots = next(k for k in options.subgraph_capacities if k >= int(clusters.count))
    boxes, incidence = clusters.boxes[:slots], clusters.incidence[:slots]
    print(f"  {int(clusters.count)} subgraphs in {slots} slots, {np.mean(incidence):.0%} incidence")
    contest, pooled = stage(
        f"ROI-align of {options.max_objects} objects",
        lambda x, boxes: model.apply({"params": params}, x, boxes, map_size, method=model.pool),
        features,
        objects.boxes,
    )
    yield contest
    contest, maps = stage(
        f"ROI-align of {slots} subgraphs",
        lambda x, boxes: model.apply({"params": params}, x, boxes, map_size, method=model.pool),
        features,
        boxes,
    )
    yield contest
    contest, vectors = stage("object layers", method(lambda m, x: m.object_fc(x)), params, pooled)
    yield contest
    contest, maps = stage(
        "subgraph convolutions",
        method(lambda m, x: m.subgraph_conv(x)),
        params,
        maps,
        multiply_adds=2 * slots * model.pool_size**2 * 9 * model.dim_subgraph**2,
    )
    yield contest
    contest, (vectors, maps) = stage(
        "message passing",
        method(lambda m, *x: m.message_passing[0](*x)),
        params,
        vectors,
        maps,
        objects.boxes,
        objects.mask,
        incidence,
    )
    yield contest
    contest, terms = stage(
        "terms of pairs",
        method(lambda m, *x: m.predicate_inference.project(*x)),
        params,
        vectors,
        maps,
    )
    yield contest
    pairs = pairs_among(clusters, options.max_objects, objects.mask)
    yield _pairs_contest(model, params, terms, pairs)


def _pairs_contest(model, params, terms, pairs) -> Contest:
    """Predicates of all pairs, chunk by chunk as in the program, and nothing else."""

    def run(params, terms, *columns):
        def chunk(rows):
            def infer(m):
                phrase = m.predicate_inference.infer(
                    *(term[index] for term, index in zip(terms, rows, strict=True))
                )
                return jax.nn.softmax(m.predicate_score(jax.nn.relu(phrase)))

            return model.apply({"params": params}, method=infer)

        return jax.lax.map(chunk, tuple(x.reshape(-1, PAIR_CHUNK) for x in columns))

    count = len(pairs.mask) // PAIR_CHUNK * PAIR_CHUNK
    compiled = jax.jit(run)
    columns = [x[:count] for x in (pairs.subjects, pairs.objects, pairs.subgraphs)]
    per_pair = model.pool_size**2 * model.dim_attention * model.dim_attention // 2
    per_pair += model.pool_size**2 * model.dim_attention // 2 * model.dim_predicate
    per_pair += model.dim_predicate * model.num_predicate_classes
    return Contest(
        f"predicates of {count} pairs",
        {OURS: lambda: compiled(params, terms, *columns)},
        multiply_adds=count * per_pair,
    )


def matrix_product() -> Iterator[Contest]:
    """The yardstick: how fast this machine multiplies matrices in float32."""
    a = jnp.asarray(np.random.default_rng(0).normal(size=(2048, 2048)), jnp.float32)
    product = jax.jit(jnp.dot)
    yield Contest(
        "matrix product 2048 x 2048 x 2048",
        {OURS: lambda: product(a, a)},
        multiply_adds=2048**3,
    )


def detection() -> Iterator[Contest]:
    """Image to graph in one program, pruned and not.

    With untrained weights nothing can be pruned; with peaked ones the first chunk of pairs
    suffices. What a trained network leaves lies between (docs/performance.md).
    """
    options = builder.test_options(models.config())
    example = jax.device_put(models.example())
    programs = {}
    for name, prune in ((OURS, True), ("all pairs", False)):
        chosen = dataclasses.replace(options, prune_pairs=prune)
        programs[name] = jax.jit(lambda p, e, chosen=chosen: detect(models.model(), p, e, chosen))
    for kind, params in (
        ("untrained", models.untrained_params()),
        ("peaked", models.peaked_params()),
    ):
        pairs = int(programs[OURS](params, example).inferred_pairs)
        ways = {name: functools.partial(run, params, example) for name, run in programs.items()}
        yield Contest(f"image -> graph 600x800, {kind}, {pairs} pairs inferred", ways, images=1)


def training() -> Iterator[Contest]:
    """Losses and gradients of one image, 256 objects and 512 relationships."""
    example, params = jax.device_put(models.example()), models.untrained_params()
    step = jax.jit(models.training_step)
    ways = {OURS: lambda: step(params, example)}
    yield Contest("training step 600x800, without the update", ways, images=1)


def _vgg_multiply_adds() -> float:
    height, width = inputs.IMAGE
    total, channels = 0, 3
    for block, repeats in enumerate((2, 2, 3, 3, 3)):
        for _ in range(repeats):
            features = (64, 128, 256, 512, 512)[block]
            total += (height >> block) * (width >> block) * 9 * channels * features
            channels = features
    return total
