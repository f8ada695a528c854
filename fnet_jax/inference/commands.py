"""What --mode predict, serve and export of the command line do."""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Sequence

from fnet_jax.errors import UserError
from fnet_jax.inference.predictor import ImageFormat, SceneGraphPredictor

# Exit status of --mode predict when some files were skipped.
SOME_SKIPPED = 3


def open_predictor(path: str, config=None) -> SceneGraphPredictor:
    """From a workdir or checkpoint folder, or a published .h5 file.

    Args:
      path: what --checkpoint names.
      config: --config. A published file needs one, whose dataset tells the class names; otherwise
        see `SceneGraphPredictor.from_checkpoint`.
    """
    if not path.endswith((".h5", ".hdf5")):
        return SceneGraphPredictor.from_checkpoint(path, config)
    if config is None:
        raise UserError(
            f"--checkpoint: {path} does not say what its classes are; name the config of its "
            "dataset with --config"
        )
    # Imported late: checkpoints of this program need no dataset.
    from fnet_jax import builder
    from fnet_jax.experiment import Experiment

    experiment = Experiment.open(config)
    params, _ = experiment.trained_params(path)
    split = experiment.split(config.dataset.train_split)
    return SceneGraphPredictor(
        experiment.model,
        params,
        builder.test_options(config),
        ImageFormat.of(config.image),
        split.object_classes,
        split.predicates,
    )


def run_predict(
    path: str,
    config,
    inputs: Sequence[str],
    output: str,
    *,
    boxes: str | None = None,
    every: int = 1,
    pictures: bool = True,
    top_k: int = 20,
    min_score: float = 0.0,
) -> int:
    """Writes the scene graphs of files and says what was written and what was skipped.

    Args:
      path, config: see `open_predictor`.
      inputs: files, folders and patterns.
      output and the others: see `predict.predict_files`; `boxes` is a file.

    Returns: the exit status: 0, or `SOME_SKIPPED`.

    Raises:
      UserError: not one file could be used, or what `open_predictor` and `predict_files` raise.
    """
    # Imported late: embedding programs have no use for pages and pictures.
    from fnet_jax.inference import image_files
    from fnet_jax.inference.given_boxes import read_boxes
    from fnet_jax.inference.predict import predict_files

    sources = image_files.find(inputs, leave_out=pathlib.Path(output))
    predictor = open_predictor(path, config)
    given = None if boxes is None else read_boxes(boxes, predictor.object_names)
    start = time.perf_counter()
    outcome = predict_files(
        predictor,
        sources,
        output,
        every=every,
        boxes=given,
        pictures=pictures,
        top_k=top_k,
        min_score=min_score,
    )
    seconds = time.perf_counter() - start
    for name, reason in outcome.skipped:
        print(f"skipped {name}: {reason}", file=sys.stderr)
    if not outcome.count:
        raise UserError(f"--input: no file could be used ({len(sources)} tried)")
    lines = pathlib.Path(output, "graphs.jsonl")
    print(f"{outcome.count} scene graphs in {seconds:.1f} s: {lines}")
    if pictures:
        print(f"pictures: {pathlib.Path(output, 'pictures')}")
    for page in outcome.pages:
        print(f"page: {page}")
    if outcome.skipped:
        print(f"{len(outcome.skipped)} skipped, named above", file=sys.stderr)
    return SOME_SKIPPED if outcome.skipped else 0


def run_serve(path: str, config, host: str, port: int, *, top_k: int, min_score: float) -> None:
    """Runs the web demo until it is interrupted; see `serve.serve`."""
    from fnet_jax.inference.serve import serve

    serve(open_predictor(path, config), host, port, top_k=top_k, min_score=min_score)


def run_export(path: str, config, output: str, platforms: Sequence[str]) -> None:
    """Writes one file that runs without this package; see `export.export_program`."""
    from fnet_jax.inference.export import export_program

    predictor = open_predictor(path, config)
    programs = export_program(
        output,
        predictor.model,
        predictor.params,
        predictor.options,
        buckets=predictor.image_format.buckets,
        image=dataclasses.asdict(predictor.image_format),
        object_names=predictor.object_names,
        predicate_names=predictor.predicate_names,
        platforms=platforms,
        facts={} if predictor.step is None else {"step": predictor.step},
    )
    size = pathlib.Path(output).stat().st_size / 1e6
    print(f"{len(programs)} programs for {', '.join(platforms)} in {output} ({size:.1f} MB)")
    print("to run it: docs/run_exported.py")
