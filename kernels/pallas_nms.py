"""Greedy suppression of ranked boxes as one Pallas kernel: Mosaic on TPUs, Triton on NVIDIA GPUs.

The XLA form (`nms.py`) is loops of small operations. On a GPU each operation is a launch, and each
turn of a loop waits for its condition: hundreds of launches an image. This kernel is one launch of
one program. It holds a block of candidates in registers and walks the blocks in rank order:

    drop the candidates that a box kept in an earlier block suppresses
    while any is left: keep the first, and drop those it suppresses

Only finding the first one left is a reduction, once for each box kept; the rest is elementwise
over the block. The price is that one program uses one core of the accelerator.

It is held against the reference in interpret mode and lowered for both platforms, but no
accelerator was at hand: **it was never run on one, nor timed**, so it is not the default.
Triton under Pallas is deprecated as of JAX 0.12; its successor needs a Hopper GPU.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu, triton

from fnet_jax.kernels.boxes import intersection_and_union

# Candidates held in registers: on a TPU one register a coordinate, on a GPU four a thread.
_BLOCK = 1024
_TPU_LANES = 128
_GPU_WARPS = 8


def suppress_ranked(
    boxes: jax.Array, indices: jax.Array, mask: jax.Array, iou_threshold: float, max_output: int
) -> tuple[jax.Array, jax.Array]:
    """Greedy NMS of boxes that are in rank order already. On CPU the kernel is interpreted.

    Args:
      boxes: `[4, N]` float32 rows x1, y1, x2, y2, inclusive pixels. On a TPU they lie in scalar
        memory: 16 N bytes of 1 MiB (v4 and newer).
      indices: `[N]` int32, what to report of each box kept.
      mask: `[N]` bool, True for valid boxes.
      iou_threshold: suppression at IoU **>** this, in [0, 1].
      max_output: static number of slots.

    Returns:
      `[max_output]` int32 of `indices` in rank order, 0 in unused slots; and `[max_output]` bool,
      True where a slot is used. Used slots come first.

    Raises:
      NotImplementedError: when lowered for another platform than cpu, cuda and tpu.
    """
    count = mask.shape[0]
    if not count or not max_output:
        return jnp.zeros(max_output, jnp.int32), jnp.zeros(max_output, bool)
    padding = -count % _BLOCK
    boxes, mask = jnp.pad(boxes, ((0, 0), (0, padding))), jnp.pad(mask, (0, padding))
    ranks = jnp.arange(count + padding, dtype=jnp.int32)
    kept, kept_count = jax.lax.platform_dependent(
        jnp.asarray(iou_threshold, jnp.float32).reshape(1, 1),
        boxes,
        jnp.where(mask, ranks, ranks.size),
        cpu=functools.partial(_interpreted, max_output),
        cuda=functools.partial(_triton, max_output),
        tpu=functools.partial(_mosaic_tpu, max_output),
    )
    used = jnp.arange(max_output, dtype=jnp.int32) < kept_count[0]
    # Unused slots were never written: whatever index they hold, its value is not taken.
    return jnp.where(used, indices[kept[0]], 0), used


def _interpreted(max_output: int, threshold, boxes, ranks):
    kernel = pl.pallas_call(_kernel, out_shape=_outputs(max_output), interpret=True)
    return kernel(threshold, boxes, boxes, ranks)


def _triton(max_output: int, threshold, boxes, ranks):
    kernel = pl.pallas_call(
        functools.partial(_kernel, barrier=triton.debug_barrier),
        out_shape=_outputs(max_output),
        compiler_params=triton.CompilerParams(num_warps=_GPU_WARPS),
    )
    return kernel(threshold, boxes, boxes, ranks)


def _mosaic_tpu(max_output: int, threshold, boxes, ranks):
    scalars, vectors = pl.BlockSpec(memory_space=tpu.SMEM), pl.BlockSpec(memory_space=tpu.VMEM)
    kernel = pl.pallas_call(
        _kernel,
        out_shape=_outputs(max_output),
        in_specs=[scalars, scalars, vectors, vectors],
        out_specs=[scalars, scalars],
    )
    rows = boxes.reshape(4, -1, _TPU_LANES)
    return kernel(threshold, boxes, rows, ranks.reshape(-1, _TPU_LANES))


def _outputs(max_output: int):
    # Two-dimensional, as is the threshold: under `vmap` a TPU block spans its last two dimensions.
    return tuple(jax.ShapeDtypeStruct((1, size), jnp.int32) for size in (max_output, 1))


def _kernel(
    threshold_ref,
    box_ref,
    boxes_ref,
    ranks_ref,
    kept_ref,
    count_ref,
    *,
    barrier: Callable[[], None] | None = None,
):
    """One program for the whole suppression. A candidate that is out has the rank N.

    Args:
      threshold_ref: `[1, 1]` float32.
      box_ref: `[4, N]` float32, read one box at a time.
      boxes_ref: the same as `[4, rows, ...]`, read a block of rows at a time.
      ranks_ref: `[rows, ...]` int32, the position of each candidate, or N if it is invalid.
      kept_ref: `[1, max_output]` int32, written.
      count_ref: `[1, 1]` int32, written.
      barrier: shows every thread what the others have written, where threads there are.
    """
    max_output, out = kept_ref.shape[1], box_ref.shape[1]
    blocks = out // _BLOCK
    rows = ranks_ref.shape[0] // blocks
    threshold = threshold_ref[0, 0]

    def walk_on(state):
        block, kept_count = state
        return (block < blocks) & (kept_count < max_output)

    def walk(state):
        block, kept_count = state
        here = pl.ds(pl.multiple_of(block * rows, rows), rows)
        corners = [boxes_ref[column, here] for column in range(4)]

        def suppress(position, ranks):
            box = [box_ref[column, position] for column in range(4)]
            intersection, union = intersection_and_union(box, corners)
            return jnp.where(intersection > threshold * union, out, ranks)

        def pick_on(state):
            first, kept_count, _ = state
            return (first < out) & (kept_count < max_output)

        def pick(state):
            first, kept_count, ranks = state
            kept_ref[0, kept_count] = first
            ranks = jnp.where(ranks == first, out, ranks)  # an empty box would stay
            ranks = suppress(first, ranks)
            return jnp.min(ranks), kept_count + 1, ranks

        if barrier is not None:
            barrier()  # `kept_ref` was written by one thread
        ranks = jax.lax.fori_loop(
            0, kept_count, lambda k, ranks: suppress(kept_ref[0, k], ranks), ranks_ref[here]
        )
        _, kept_count, _ = jax.lax.while_loop(pick_on, pick, (jnp.min(ranks), kept_count, ranks))
        return block + 1, kept_count

    zero = jnp.zeros((), jnp.int32)
    _, count_ref[0, 0] = jax.lax.while_loop(walk_on, walk, (zero, zero))
