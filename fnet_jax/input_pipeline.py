"""Batches of resized, padded images with their annotations, for training and for evaluation.

What a step holds is planned from (seed, position) and the image sizes in the dataset's metadata
alone. Each process therefore plans the whole global batch, agrees with the others on its bucket
without talking to them, and reads only its own images. The position is the whole state of an
iterator: it does not matter how many worker processes read ahead.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from fnet_jax import image_ops
from fnet_jax.datasets.split import Split
from fnet_jax.errors import UserError
from fnet_jax.read_ahead import ReadAhead

__all__ = ["Split", "TrainBatches", "eval_batches", "steps_per_epoch", "train_batches"]

# Streams of random numbers that must not coincide.
_SHUFFLE, _SCALE, _PREDICATE = 0, 1, 2
WORKER_TIMEOUT = 300.0  # seconds
_MAX_NAMED = 4


def steps_per_epoch(num_images: int, global_batch_size: int) -> int:
    """Steps after which every image has been seen at least once more: division rounded up."""
    return -(-num_images // global_batch_size)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What one process loads for one step; entries of all lists are parallel.

    Attributes:
      positions: global positions of the images.
      indices: positions in the split.
      factors: resize factors.
      valid: False for fillers of the last batch.
      bucket: (height, width) of the padded images, the same in all processes of the step.
    """

    positions: np.ndarray
    indices: np.ndarray
    factors: np.ndarray
    valid: np.ndarray
    bucket: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class _Loader:
    """Plans and loads the steps of one process. Picklable, so that workers can have it.

    Global position p counts images from the start of the stream: of epoch p // len in training,
    of the split in evaluation. Rows of a step are divided among the processes in order.
    """

    split: Split
    batch_size: int
    seed: int | None  # None: in order, once.
    scales: tuple[int, ...]
    max_size: int
    buckets: tuple[tuple[int, int], ...]
    color_order: str
    process_index: int
    process_count: int
    num_workers: int
    worker_timeout: float
    pair_predicate: str = "last"
    overlapping_pairs_only: bool = False

    @property
    def global_batch_size(self) -> int:
        return self.batch_size * self.process_count

    def plan(self, position: int) -> _Plan:
        """The plan of the step that begins at global position `position`."""
        split, count = self.split, len(self.split)
        positions = position + np.arange(self.global_batch_size)
        if self.seed is None:
            indices = np.minimum(positions, count - 1)
            targets = np.full(len(positions), self.scales[0], np.float64)
            valid = positions < count
        else:
            epochs, offsets = np.divmod(positions, count)
            indices = np.array(
                [
                    _permutation(self.seed, int(epoch), count)[offset]
                    for epoch, offset in zip(epochs, offsets, strict=True)
                ]
            )
            draws = [
                np.random.default_rng([self.seed, _SCALE, int(p)]).integers(len(self.scales))
                for p in positions
            ]
            targets = np.asarray(self.scales, np.float64)[draws]
            valid = np.ones(len(positions), bool)
        factors = image_ops.resize_factor(split.sizes[indices], targets, self.max_size)
        height, width = image_ops.resized_size(split.sizes[indices], factors).max(axis=0)
        bucket = image_ops.smallest_bucket(self.buckets, height, width)
        if bucket is None:
            raise UserError(_no_bucket(self.buckets, (height, width), "images of one step"))
        own = slice(
            self.process_index * self.batch_size, (self.process_index + 1) * self.batch_size
        )
        return _Plan(positions[own], indices[own], factors[own], valid[own], bucket)

    def read(self, positions: range) -> ReadAhead:
        """The batches of the steps that begin at `positions`."""
        return ReadAhead(
            self.load,
            positions,
            num_workers=self.num_workers,
            timeout=self.worker_timeout,
            describe=self._describe,
        )

    def _describe(self, position: int) -> str:
        """The images of a step, for messages."""
        named = [self.split.filenames[index] for index in self.plan(position).indices]
        listed = ", ".join(named[:_MAX_NAMED]) + (", ..." if len(named) > _MAX_NAMED else "")
        return f"{listed} of {self.split.dataset} {self.split.name}"

    def load(self, position: int) -> dict[str, np.ndarray]:
        """The batch of this process for the step that begins at global position `position`."""
        plan = self.plan(int(position))
        examples = [
            self._example(int(position), int(index), float(factor), plan.bucket)
            for position, index, factor in zip(
                plan.positions, plan.indices, plan.factors, strict=True
            )
        ]
        batch = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
        # A filler's index names no image, so that counting one fails instead of passing unseen.
        batch["image_index"] = np.where(plan.valid, plan.indices, -1).astype(np.int32)
        batch["valid"] = plan.valid
        return batch

    def _example(self, position: int, index: int, factor: float, bucket: tuple[int, int]) -> dict:
        record, image = self.split.load(index, self.color_order)
        image = image_ops.resize(image, factor)
        height, width = image.shape[:2]
        capacity, count = self.split.padded_objects, len(record["boxes"])
        boxes = np.zeros((capacity, 4), np.float32)
        boxes[:count] = record["boxes"] * factor
        classes = np.zeros(capacity, np.int32)
        classes[:count] = record["classes"]
        rows = record["relationships"]
        if self.overlapping_pairs_only:
            rows = rows[_overlap(record["boxes"], rows)]
        if self.pair_predicate == "random":
            rows = np.random.default_rng([self.seed, _PREDICATE, position]).permutation(rows)
        relationships = np.zeros((capacity, capacity), np.int32)
        # A pair may be annotated more than once; the last annotation wins (protocol of F-Net).
        for subject, object_, predicate in rows:
            relationships[subject, object_] = predicate
        info = (height, width, factor, record["height"], record["width"])
        return {
            "image": image_ops.pad(image, bucket),
            "im_info": np.array(info, np.float32),
            "gt_boxes": boxes,
            "gt_classes": classes,
            "gt_relationships": relationships,
        }

    def check_buckets(self) -> None:
        """Raises UserError now if any step of the future could find no bucket."""
        sizes = self.split.sizes
        resized = np.stack(
            [
                image_ops.resized_size(
                    sizes, image_ops.resize_factor(sizes, float(scale), self.max_size)
                )
                for scale in self.scales
            ]
        )  # (scales, images, 2)
        limits = np.asarray(self.buckets).reshape(-1, 2)
        fits = (resized[:, :, None] <= limits).all(axis=-1).any(axis=-1)  # (scales, images)
        if not fits.all():
            scale, index = np.argwhere(~fits)[0]
            filename = self.split.record(int(index))["filename"]
            what = f"image {index} ({filename}) of {self.split.dataset} {self.split.name}"
            raise UserError(_no_bucket(self.buckets, resized[scale, index], what))
        # Any two images can meet in a step of several: the highest and the widest, say.
        if self.global_batch_size > 1:
            tallest, widest = resized.reshape(-1, 2).max(axis=0)
            if image_ops.smallest_bucket(self.buckets, tallest, widest) is None:
                what = "images of one step (the highest and the widest together)"
                raise UserError(_no_bucket(self.buckets, (tallest, widest), what))


def _no_bucket(buckets: Sequence, size: Sequence[int], what: str) -> str:
    height, width = (int(side) for side in size)
    return (
        f"no bucket holds {what}, resized to {height} x {width} (height x width); add "
        f"({height}, {width}) or larger to image.buckets {tuple(map(tuple, buckets))}"
    )


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, _SHUFFLE, epoch]).permutation(count)


class TrainBatches(Iterator):
    """Endless shuffled batches; `get_state` and `set_state` make the position part of a checkpoint.

    An epoch's images are followed directly by the next epoch's, so that a batch may hold both.
    """

    def __init__(self, loader: _Loader):
        self._loader = loader
        self._position = 0
        self._batches = None

    def __next__(self) -> dict[str, np.ndarray]:
        if self._batches is None:
            step = self._loader.global_batch_size
            stop = sys.maxsize // step * step
            self._batches = self._loader.read(range(self._position, stop, step))
        batch = next(self._batches)
        self._position += self._loader.global_batch_size
        return batch

    def get_state(self) -> dict[str, int]:
        """What `set_state` needs to go on after the last batch that was handed out; JSON-able."""
        return {"position": self._position}

    def set_state(self, state: dict[str, int]) -> None:
        """The next batch is the one that followed when `get_state` was called."""
        self.close()
        self._position = int(state["position"])

    def close(self) -> None:
        """Stops the worker processes; the iterator can still be used and starts new ones."""
        if self._batches is not None:
            self._batches.close()
        self._batches = None


def train_batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    scales: Sequence[int],
    max_size: int,
    buckets: Sequence[tuple[int, int]],
    color_order: str,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    worker_timeout: float = WORKER_TIMEOUT,
    pair_predicate: str = "last",
    overlapping_pairs_only: bool = False,
) -> TrainBatches:
    """Endless training batches of one process, each image resized to one of `scales` at random.

    Args:
      split: what to read.
      batch_size: images per process and step (B).
      seed: of the order and the scales; the same in all processes.
      scales: wanted short sides in pixels; one listed twice is drawn twice as often.
      max_size: limit of the long side in pixels.
      buckets: (height, width) sizes to pad to; a step takes the smallest that holds all its images.
      color_order: "bgr" or "rgb".
      process_index, process_count: which part of each global batch is read.
      num_workers: processes that read ahead; 0 reads in the calling process.
      worker_timeout: seconds without a batch after which these are started anew, see `ReadAhead`.
      pair_predicate: which of several predicates of an ordered pair is given: the "last" annotated
        one, or one drawn at "random" each time (an often repeated one more often).
      overlapping_pairs_only: leaves out relationships of two boxes that have no pixel in common.

    Returns:
      An iterator of dicts: image (B, H, W, 3) uint8, zero outside the valid size; im_info (B, 5)
      float32 (height, width, factor, original height, original width); gt_boxes (B, G, 4) float32
      pixels of the resized image; gt_classes (B, G) int32, 0 where there is no object;
      gt_relationships (B, G, G) int32 predicate of (subject, object) or 0; image_index (B,) int32;
      valid (B,) bool.

    Raises:
      UserError: an image fits no bucket (at once), or is damaged (when it is read).
    """
    _check_color_order(color_order)
    if seed < 0:
        raise UserError(f"config.seed is {seed}; it must not be negative")
    if not scales or min(scales) < 1:
        raise UserError(
            f"config.image.train_scales is {tuple(scales)}; it needs at least one short side in "
            "pixels"
        )
    if pair_predicate not in ("last", "random"):
        raise UserError(
            f"config.train.pair_predicate is {pair_predicate!r}; it must be 'last' or 'random'"
        )
    loader = _Loader(
        pair_predicate=pair_predicate,
        overlapping_pairs_only=overlapping_pairs_only,
        split=split,
        batch_size=batch_size,
        seed=seed,
        scales=tuple(scales),
        max_size=max_size,
        buckets=tuple(map(tuple, buckets)),
        color_order=color_order,
        process_index=process_index,
        process_count=process_count,
        num_workers=num_workers,
        worker_timeout=worker_timeout,
    )
    loader.check_buckets()
    return TrainBatches(loader)


def eval_batches(
    split: Split,
    *,
    batch_size: int,
    scale: int,
    max_size: int,
    buckets: Sequence[tuple[int, int]],
    color_order: str,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    worker_timeout: float = WORKER_TIMEOUT,
) -> Iterator[dict[str, np.ndarray]]:
    """Each image once, in order; all processes yield the same number of batches.

    Arguments, batches and errors are those of `train_batches`, except that all images are resized
    to one `scale` and the last batch is filled up: a filler repeats the last image, with
    `image_index` -1 and `valid` False.
    """
    _check_color_order(color_order)
    loader = _Loader(
        split=split,
        batch_size=batch_size,
        seed=None,
        scales=(scale,),
        max_size=max_size,
        buckets=tuple(map(tuple, buckets)),
        color_order=color_order,
        process_index=process_index,
        process_count=process_count,
        num_workers=num_workers,
        worker_timeout=worker_timeout,
    )
    loader.check_buckets()
    return loader.read(range(0, len(split), loader.global_batch_size))


def _overlap(boxes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(m,) bool: whether the two boxes of each (subject, object, predicate) row overlap."""
    subjects, objects = boxes[rows[:, 0]], boxes[rows[:, 1]]
    low = np.maximum(subjects[:, :2], objects[:, :2])
    high = np.minimum(subjects[:, 2:], objects[:, 2:])
    return (low <= high).all(axis=1)


def _check_color_order(color_order: str) -> None:
    if color_order not in ("bgr", "rgb"):
        raise UserError(f"image.color_order is {color_order!r}; it must be 'bgr' or 'rgb'")
