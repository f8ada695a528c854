"""A config with its dataset opened and its network described; its weights, old and new."""

import dataclasses
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from fnet_jax import (
    builder,
    checkpoint,
    image_ops,
    imagenet,
    input_pipeline,
    train_step,
    weights,
)
from fnet_jax.calibrate import calibrate
from fnet_jax.datasets import kmeans, load_builder
from fnet_jax.detect import detect_on_devices, normalise
from fnet_jax.errors import UserError
from fnet_jax.evaluate import evaluate
from fnet_jax.model import PARAM_SHAPE_IMAGE, FactorizableNet, param_shapes
from fnet_jax.protocols import Scores, task_of

# What detection reads of a batch; the rest stays on the host.
_MODEL_INPUTS = ("image", "im_info", "gt_boxes", "gt_classes")
_CALIBRATION_IMAGES = 8
_NEEDS_WEIGHTS = ("from_rpn", "continue", "message_passing")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config with its dataset opened and its network described."""

    config: object
    dataset: object  # a built TFDS builder
    model: FactorizableNet

    @classmethod
    def open(cls, config, strict: bool = False) -> "Experiment":
        """Opens (and on first use builds) the dataset and checks the config against it."""
        section, dataset = config.dataset, open_dataset(config, strict)
        split = input_pipeline.Split(dataset, section.train_split)
        anchors = kmeans.file_of(dataset)
        if anchors.is_file() and config.anchors.kind == "kmeans" and not config.anchors.file:
            print(f"anchors are the dataset's own, {anchors}", file=sys.stderr)
        model = builder.build_model(
            config, len(split.object_classes), len(split.predicates), anchors
        )
        return cls(config, dataset, model)

    def split(self, name: str, limit: int | None = None) -> input_pipeline.Split:
        """`split_of` the dataset."""
        return split_of(self.dataset, name, limit)

    @functools.cached_property
    def template(self):
        """Shapes of all parameters, without computing any."""
        return param_shapes(self.model)

    def initial_params(self, split) -> dict:
        """Random parameters, over which `train.init_from` is laid.

        It may name an ImageNet VGG16 (.pth, .safetensors, Keras .h5), an RPN or a whole model in
        the published .h5 format, or a checkpoint of this program. Without it the
        network is calibrated on images of the split.
        """
        path, stage = self.config.train.init_from, self.config.train.stage
        if not path and stage in _NEEDS_WEIGHTS:
            raise UserError(
                f"config.train.stage={stage} starts from trained weights; name them with "
                "--config.train.init_from"
            )
        if not path and stage == "end_to_end":
            print(
                "warning: config.train.init_from is empty: training starts from a random VGG16, "
                "and its first layers stay so; see README, Stages",
                file=sys.stderr,
            )
        image = jnp.zeros(PARAM_SHAPE_IMAGE, jnp.float32)
        key = jax.random.key(self.config.seed)
        # It runs once: optimising its many random draws takes three times as long as they do not.
        init = jax.jit(self.model.init, compiler_options={"xla_backend_optimization_level": 0})
        params = jax.tree.map(np.asarray, init(key, image)["params"])
        if path:
            return {**params, **self._pretrained(path)}
        return calibrate(self.model, params, self._example_images(split))

    def _example_images(self, split):
        """A few normalised training images, cut to the size of the smallest: (n, h, w, 3)."""
        section = self.config.image
        images = []
        for index in range(min(_CALIBRATION_IMAGES, len(split))):
            image = split.image(index, section.color_order)
            scale = float(section.train_scales[0])
            factor = image_ops.resize_factor(image.shape[:2], scale, section.max_size)
            images.append(image_ops.resize(image, float(factor)))
        height, width = np.min([image.shape[:2] for image in images], axis=0)
        cut = np.stack([image[:height, :width] for image in images])
        return jax.vmap(lambda x: normalise(x, x.shape[:2], section.mean, section.std))(cut)

    def _pretrained(self, path: str) -> dict:
        """The top-level parts of the parameter tree that a weights file holds."""
        if pathlib.Path(path).is_dir():
            return self._restored(path).params
        if not pathlib.Path(path).exists():
            raise UserError(f"config.train.init_from: {path} does not exist")
        kind = weights.kind_of(path)
        if kind == "model":
            return weights.load_checkpoint(path, self.template)
        if kind == "rpn":
            return weights.load_rpn(path, self.template)
        image = self.config.image
        backbone = imagenet.load_vgg16(
            path, image.color_order, self.template["backbone"], mean=image.mean, std=image.std
        )
        return {"backbone": backbone}

    def trained_params(self, path: str) -> tuple[dict, dict]:
        """Parameters of a published .h5 file or a folder of this program, and facts about them."""
        if path.endswith((".h5", ".hdf5")):
            params = weights.load_checkpoint(path, self.template)
            if self._anchors_are_assumed():
                print(
                    f"warning: {path} does not say with which anchors it was trained, and "
                    "Visual Genome's are assumed; name the right ones with --config.anchors.file",
                    file=sys.stderr,
                )
            return params, {"checkpoint": path}
        saved = self._restored(path)
        return saved.params, {"checkpoint": path, "step": saved.step}

    def _anchors_are_assumed(self) -> bool:
        """Whether the anchors are those of the base config, though the dataset is another."""
        section = self.config.anchors
        own = kmeans.file_of(self.dataset).is_file() or section.file or section.kind != "kmeans"
        return self.config.dataset.name != "vg_msdn" and not own

    def _restored(self, path: str) -> checkpoint.Checkpoint:
        saved = checkpoint.restore(
            path, self.template, prefer=checkpoint.BEST, with_optimizer=False
        )
        checkpoint.check_metadata(
            saved, self.metadata(self.split(self.config.dataset.train_split)), path
        )
        return saved

    def metadata(self, split) -> dict:
        """What a checkpoint says of itself."""
        return describe(self.config, self.model, split.object_classes, split.predicates)

    def eval_batches(self, split):
        """This process's batches, in order, one image for each local device."""
        image = self.config.image
        return input_pipeline.eval_batches(
            split,
            batch_size=jax.local_device_count(),
            scale=image.test_scale,
            max_size=image.max_size,
            buckets=image.buckets,
            color_order=image.color_order,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_workers=self.config.dataset.num_workers,
            worker_timeout=self.config.dataset.worker_timeout,
        )

    @functools.cached_property
    def _detect(self):
        """sgb_rankings -> detection on every local device; one program for each image size."""

        @functools.cache
        def compiled(sgb_rankings: bool):
            return detect_on_devices(self.model, builder.test_options(self.config, sgb_rankings))

        return compiled

    @property
    def task(self) -> str:
        """One of `metrics.TASKS`."""
        return task_of(self.config.test.use_gt_boxes, self.config.test.use_gt_labels)

    def evaluate(self, params, split, scores: Scores, results_path=None) -> dict[str, float | str]:
        """Metrics of `fnet_jax.evaluate.evaluate` for given parameters on a split.

        Processes divide the images among them and get the same metrics, so that all agree on which
        checkpoint is the best.
        """
        params = train_step.replicate(params)
        run = self._detect("sgb" in scores.states)

        def predict(batch):
            inputs = {key: batch[key] for key in _MODEL_INPUTS}
            return jax.device_get(run(params, inputs))

        return evaluate(
            predict,
            split,
            self.eval_batches(split),
            scores=scores,
            object_names=split.object_classes,
            predicate_names=split.predicates,
            results_path=results_path,
            num_images=len(split),
        )


def describe(config, model: FactorizableNet, object_names, predicate_names) -> dict:
    """What a checkpoint says of itself, so that it can be used without config and dataset."""
    # How much room subgraphs get, dropout and rounding change between uses of the same weights.
    free = ("subgraph_capacities", "dropout", "compute_dtype")
    network = {k: v for k, v in config.model.to_dict().items() if k not in free}
    network |= {k: config.image[k] for k in ("color_order", "mean", "std")}
    return {
        "config": config.to_dict(),
        "network": network,
        "object_names": list(object_names),
        "predicate_names": list(predicate_names),
        "anchors": [list(row) for row in model.base_anchors],
    }


def open_dataset(config, strict: bool = False):
    """The built dataset of a config; with `strict` a photo that must be skipped is an error."""
    section = config.dataset
    return load_builder(
        section.name, section.builder_config, section.data_dir, section.manual_dir, strict
    )


def split_of(dataset, name: str, limit: int | None = None) -> input_pipeline.Split:
    """A split of a dataset, or only its first `limit` images."""
    split = input_pipeline.Split(dataset, name)
    if limit is None or limit >= len(split):
        return split
    if "[" in name:
        raise UserError(f"split {name!r} is cut already; leave the number of images unset")
    return input_pipeline.Split(dataset, f"{name}[:{limit}]")
