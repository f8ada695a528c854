"""What each `--mode` of the command line does, in terms of config, dataset, model and loops."""

import contextlib
import functools
import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from tqdm import tqdm

from fnet_jax import (
    bad_batch,
    builder,
    checkpoint,
    input_pipeline,
    multihost,
    results,
    train,
    train_step,
)
from fnet_jax.anchors import REFERENCE_SCALE
from fnet_jax.datasets import create_builder, kmeans, manual_folder
from fnet_jax.datasets.report import report
from fnet_jax.errors import UserError
from fnet_jax.experiment import Experiment, open_dataset, split_of
from fnet_jax.files import writing
from fnet_jax.objective import training_losses
from fnet_jax.predictions import from_annotation, to_line
from fnet_jax.protocols import Scores, task_of
from fnet_jax.score import score_file
from fnet_jax.train_plan import Plan


def fresh_scores(split, protocols, task: str) -> Scores:
    """Empty states of the named protocols for a split."""
    return Scores(protocols, len(split.predicates), split.training, task)


def run_training(config, workdir: str, strict: bool = False) -> train.FitResult:
    """Trains, or goes on training, as `config.train.stage` says; see `train.fit`.

    With `strict` a photo that cannot be stored is an error, here and in `run_evaluation`.
    """
    experiment = Experiment.open(config, strict)
    split = experiment.split(config.dataset.train_split)
    held_out = experiment.split(config.dataset.validation_split, config.train.eval_images)

    def validate(params):
        scores = fresh_scores(held_out, ("fnet",), experiment.task)
        metrics = experiment.evaluate(params, held_out, scores)
        return {name: value for name, value in metrics.items() if name != "task"}

    image = config.image
    batches = input_pipeline.train_batches(
        split,
        batch_size=jax.local_device_count(),
        seed=config.seed,
        scales=image.train_scales,
        max_size=image.max_size,
        buckets=image.buckets,
        color_order=image.color_order,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=config.dataset.num_workers,
        worker_timeout=config.dataset.worker_timeout,
        pair_predicate=config.train.pair_predicate,
        overlapping_pairs_only=config.train.overlapping_pairs_only,
    )
    # A run that goes on needs the shapes of its parameters only.
    started = checkpoint.has_latest(workdir)
    params = experiment.template if started else experiment.initial_params(split)
    # Going on with another run takes its optimizer and data position too, not only its weights.
    goes_on = config.train.stage == "continue" and pathlib.Path(config.train.init_from).is_dir()
    with contextlib.closing(batches):
        return train.fit(
            loss_fn=_loss_of(experiment, split),
            params=params,
            batches=batches,
            num_images=len(split),
            config=config.train,
            workdir=workdir,
            seed=config.seed,
            image_name=lambda index: split.record(index)["filename"],
            evaluate_fn=validate,
            metadata=experiment.metadata(split),
            resume_from=config.train.init_from if goes_on else None,
        )


def _loss_of(experiment: Experiment, split) -> train_step.LossFn:
    """The objective of one image, as `train.fit` wants it."""
    options = builder.train_options(
        experiment.config,
        object_weights=builder.class_weights(split.object_weights),
        predicate_weights=builder.class_weights(split.predicate_weights),
    )

    def loss_fn(params, example, key, phase):
        return training_losses(
            experiment.model,
            params,
            example,
            key,
            options,
            rpn_loss=phase.rpn_loss,
            graph_loss=phase.graph_loss,
            frozen_layers=phase.frozen_backbone_layers,
        )

    return loss_fn


def run_replay(config, workdir: str) -> bool:
    """Runs the images of the last bad step again, with the weights of the latest checkpoint.

    Prints for each image its losses and which gradients are not finite.

    Returns: whether all was finite this time: then it was the weights that went wrong, between the
      checkpoint and that step.
    """
    path = bad_batch.newest(workdir)
    bad = bad_batch.read(path)
    print(f"{path}\n{bad.cause}")
    experiment = Experiment.open(config)
    split = experiment.split(config.dataset.train_split)
    saved = checkpoint.restore(workdir, experiment.template, with_optimizer=False)
    print(f"with the weights of step {saved.step}:")
    plan = Plan.from_config(config.train, len(split), saved.metadata.get("first_epoch", 0))
    loss_fn, phase = _loss_of(experiment, split), plan.phase(bad.step - 1)

    @jax.jit
    def losses_and_gradients(params, example, key):
        def objective(params):
            return loss_fn(params, example, key, phase)

        (total, terms), gradients = jax.value_and_grad(objective, has_aux=True)(params)
        broken = jax.tree.map(lambda x: ~jnp.all(jnp.isfinite(x)), gradients)
        return {**terms, "total": total}, broken

    all_finite = True
    for example, place in bad.places():
        key = train_step.image_key(config.seed, bad.step - 1, place)
        terms, broken = jax.device_get(losses_and_gradients(saved.params, example, key))
        layers = [name for name, bad in flatten_dict(broken, sep="/").items() if bad]
        finite = all(np.isfinite(value) for value in terms.values()) and not layers
        all_finite &= finite
        index = int(example["image_index"])
        listed = ", ".join(f"{name} {float(value):.4g}" for name, value in terms.items())
        print(f"image {index} ({split.record(index)['filename']}): {listed}")
        if layers:
            more = f" and {len(layers) - 5} more" if len(layers) > 5 else ""
            print(f"  gradients not finite: {', '.join(layers[:5])}{more}")
    if all_finite:
        print(f"all finite: the weights went wrong between steps {saved.step} and {bad.step}")
    return all_finite


def run_evaluation(
    config, workdir: str, checkpoint_path: str = "", strict: bool = False
) -> dict[str, float]:
    """Evaluates a checkpoint and writes what came of it under `workdir`/evaluation/SPLIT.

    Args:
      config: the experiment; `config.test` says how to evaluate.
      workdir: of the training run; its best checkpoint is taken unless another is given.
      checkpoint_path: a published .h5 file, another workdir, or a checkpoint folder.

    Returns: the metrics, which are also in metrics.json, beside graphs.jsonl, and index.html and
      pictures/ of the first few.
    """
    experiment = Experiment.open(config, strict)
    split = experiment.split(config.dataset.eval_split, config.test.max_images)
    params, facts = experiment.trained_params(checkpoint_path or workdir)
    task = experiment.task
    scores = fresh_scores(split, config.test.protocols, task)
    suffix = "" if task == "sgdet" else f"_{task}"
    part = "" if config.test.max_images is None else f"[:{config.test.max_images}]"
    folder = pathlib.Path(workdir) / "evaluation" / (config.dataset.eval_split + part + suffix)
    with writing(folder, "--workdir"):
        folder.mkdir(parents=True, exist_ok=True)
    metrics = experiment.evaluate(params, split, scores, folder / "graphs.jsonl")
    if not multihost.is_first():
        return metrics
    tables = {"per_predicate": scores.per_predicate(split.predicates)}
    results.write_metrics(folder / "metrics.json", facts | metrics | tables)
    print(results.format_table(metrics))
    print(f"metrics and scene graphs: {folder / 'metrics.json'}, {folder / 'graphs.jsonl'}")
    if config.test.pictures:
        _draw_first(split, folder, config.test.pictures)
    return metrics


def _draw_first(split, folder: pathlib.Path, count: int) -> None:
    """The first few graphs of an evaluation: a page, and pictures beside their annotations."""
    # Imported late: a run without pictures need not wait for matplotlib.
    from fnet_jax.inference.page import write_page
    from fnet_jax.visualise import draw_scene_graph

    entries = []
    graphs = results.read_results(folder / "graphs.jsonl")
    for index, graph in enumerate(itertools.islice(graphs, count)):
        image = split.image(index, "rgb")
        entries.append((image, graph))
        stem = pathlib.PurePath(graph["image"]).stem
        picture = folder / "pictures" / f"{index:05d}_{stem}.png"
        record = split.record(index)
        about = record["filename"], record["height"], record["width"]
        annotation = to_line(
            from_annotation(record), *about, split.object_classes, split.predicates
        )
        draw_scene_graph(image, graph, picture, annotation=annotation)
        print(f"picture: {picture}")
    for page in write_page(folder / "index.html", entries):
        print(f"page: {page}")


def run_scoring(config, predictions: str, workdir: str | None = None) -> dict[str, float | str]:
    """Measures predictions from a JSONL file, whoever made them, on the evaluation split.

    Args:
      config: names the dataset, the split, the protocols and, with `config.test.use_gt_boxes` and
        `use_gt_labels`, what was given to the predictor.
      predictions: the file, in the format of `fnet_jax.predictions`.
      workdir: where to write score.json; None writes nothing.

    Returns: the metrics.
    """
    split = split_of(open_dataset(config), config.dataset.eval_split, config.test.max_images)
    task = task_of(config.test.use_gt_boxes, config.test.use_gt_labels)
    scores = fresh_scores(split, config.test.protocols, task)
    metrics = score_file(predictions, split, scores)
    print(results.format_table(metrics))
    if workdir:
        path = pathlib.Path(workdir) / "score.json"
        tables = {"per_predicate": scores.per_predicate(split.predicates)}
        results.write_metrics(path, metrics | tables)
        print(f"metrics: {path}")
    return metrics


def run_data_report(config, strict: bool = False) -> None:
    """Prints what the source files of the config's dataset hold and what is wrong with them.

    Raises:
      UserError: a file cannot be read; with `strict`, also if anything at all was found.
    """
    section = config.dataset
    dataset = create_builder(section.name, section.builder_config, section.data_dir)
    source = manual_folder(dataset, section.manual_dir)
    found = []
    for split in dataset.SPLITS:
        # disable=None: no bar unless the output is a terminal.
        bar = functools.partial(tqdm, unit="image", desc=split, disable=None, file=sys.stderr)
        found.append(report(dataset, source, split, bar))
        print(f"{section.name}, split {split}")
        print("\n".join(found[-1].lines()))
    count = sum(part.mistakes + part.oddities for part in found)
    if strict and count:
        raise UserError(f"--strict: {count} findings, listed above; correct the source files")


def run_anchors(config) -> None:
    """Clusters the training boxes of the config's dataset into anchors and stores them with it."""
    dataset = open_dataset(config)
    split = split_of(dataset, config.dataset.train_split)
    image = config.image
    longest = image.max_size * REFERENCE_SCALE / image.test_scale
    sizes = kmeans.box_sizes(split, longest)
    anchors = kmeans.cluster(sizes, len(config.anchors.scales), config.seed)
    path = kmeans.file_of(dataset)
    kmeans.write(path, anchors)
    print(
        f"{len(anchors.scales)} anchors from {len(sizes)} boxes: mean best IoU "
        f"{anchors.mean_best_iou:.4f}, written to {path}"
    )
    print("configs of this dataset use them from now on, unless config.anchors.file names others")
