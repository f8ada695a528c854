"""The command line: flags, config overrides, and one clear line for every mistake."""

import logging
import os
import sys
from typing import NamedTuple

from absl import flags
from ml_collections import config_flags

from fnet_jax import compilation_cache
from fnet_jax.errors import UserError


class _Mode(NamedTuple):
    """Which flags a mode needs, and which others it knows."""

    needs: tuple[str, ...]
    knows: tuple[str, ...] = ()


# Exit status of a training that SIGTERM or SIGINT stopped: saved, to be started again (sysexits.h
# calls it a temporary failure).
INTERRUPTED = 75

_DISPLAY = ("top_k", "min_score")
_PROCESSES = ("coordinator", "num_processes", "process_id", "cluster")
MODES = {
    "train": _Mode(("config", "workdir"), ("strict", *_PROCESSES)),
    "eval": _Mode(("config", "workdir"), ("checkpoint", "protocol", "strict", *_PROCESSES)),
    "predict": _Mode(
        ("checkpoint", "input", "output"), ("config", "boxes", "every", "pictures", *_DISPLAY)
    ),
    "serve": _Mode(("checkpoint",), ("config", "host", "port", *_DISPLAY)),
    "export": _Mode(("checkpoint", "output"), ("config", "platforms")),
    "data": _Mode(("config",), ("strict",)),
    "anchors": _Mode(("config",)),
    "score": _Mode(("config", "predictions"), ("protocol", "workdir")),
    "replay": _Mode(("config", "workdir")),
}

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "experiment, e.g. configs/shapes.py; override with --config.field=value"
)
_MODE = flags.DEFINE_enum(
    "mode",
    None,
    list(MODES),
    "train; eval: measure a checkpoint; predict: scene graphs of images and videos; serve: a web "
    "demo; export: one file that runs with JAX and NumPy alone; score: measure predictions of any "
    "program; data: report on a dataset's source files; anchors: cluster its boxes; replay: the "
    "batch once more whose losses were not finite",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of checkpoints, logs and results")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "a workdir, a checkpoint folder, or (with --config) a published .h5 file"
)
_INPUT = flags.DEFINE_multi_string(
    "input", [], "images, videos, folders and patterns; more may follow without a flag"
)
_OUTPUT = flags.DEFINE_string("output", None, "folder of the results; --mode export: the file")
_BOXES = flags.DEFINE_string(
    "boxes", None, "JSONL file of the objects of each image, to relate these instead of finding any"
)
_EVERY = flags.DEFINE_integer("every", 1, "of videos, every so many frames", lower_bound=1)
_PICTURES = flags.DEFINE_bool("pictures", True, "draw each image beside its graph")
_TOP_K = flags.DEFINE_integer("top_k", 20, "relationships shown at first", lower_bound=0)
_MIN_SCORE = flags.DEFINE_float(
    "min_score", 0.0, "relationships below this score are not shown at first", lower_bound=0.0
)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "address that the demo listens on")
_PORT = flags.DEFINE_integer(
    "port", 7860, "port that the demo listens on", lower_bound=0, upper_bound=65535
)
_PLATFORMS = flags.DEFINE_list(
    "platforms", ["cpu", "cuda", "tpu"], "what the exported file runs on"
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, for a run of several processes (docs/scale.md)"
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "of the run", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "of this process, from 0", lower_bound=0)
_CLUSTER = flags.DEFINE_bool(
    "cluster", False, "take these three from SLURM, Open MPI, Kubernetes or the TPU pod"
)
_PREDICTIONS = flags.DEFINE_string("predictions", "", "JSONL file to score")
_PROTOCOL = flags.DEFINE_list(
    "protocol", None, "fnet, sgb or both (fnet,sgb); overrides config.test.protocols"
)
_STRICT = flags.DEFINE_bool(
    "strict", False, "photos that cannot be stored, or any finding of --mode data, are errors"
)


def _parse(argv: list[str]) -> list[str]:
    """Parses flags and loads the config; anything wrong with them becomes a UserError.

    Returns: the inputs of --mode predict.
    """
    flags.FLAGS.set_gnu_getopt()  # Flags may follow on inputs.
    try:
        rest = flags.FLAGS(argv)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections quotes its messages, sometimes twice.
        text = str(error).replace("\\n", " ").replace("\\", "").replace("'", "")
        raise UserError(
            f"{' '.join(text.split())} (flags: --help; fields: configs/base.py)"
        ) from error
    if rest and not flags.FLAGS["input"].present:
        raise UserError(f"unknown argument {rest[0]!r}; see --help")
    if not flags.FLAGS["mode"].present:
        # The config comes first in every example, so it is what is missed first.
        raise UserError(
            f"--{'mode' if flags.FLAGS['config'].present else 'config'} is missing; see --help"
        )
    _check_flags_of_mode(_MODE.value)
    if flags.FLAGS["config"].present:
        path = config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0]
        if not os.path.isfile(path):
            raise UserError(f"--config: there is no file {path}")
    return [*_INPUT.value, *rest]


def _check_flags_of_mode(mode: str) -> None:
    every = {name for entry in MODES.values() for name in (*entry.needs, *entry.knows)}
    for name in sorted(every):
        present = flags.FLAGS[name].present
        if name in MODES[mode].needs and not present:
            raise UserError(f"--{name} is missing; --mode {mode} needs it")
        if present and name not in (*MODES[mode].needs, *MODES[mode].knows):
            users = [m for m, entry in MODES.items() if name in (*entry.needs, *entry.knows)]
            hint = ""
            if (name, mode) == ("checkpoint", "train"):
                hint = "; training starts from config.train.init_from"
            raise UserError(f"--{name} is for --mode {' or '.join(users)}{hint}")


def _run(inputs: list[str]) -> int:
    # Before anything imports JAX.
    compilation_cache.enable()
    _join_processes()
    if _MODE.value in ("predict", "serve", "export"):
        return _run_inference(_MODE.value, inputs)
    # Imported late: a mistyped flag should not wait for datasets and checkpoints to load.
    from fnet_jax import modes
    from fnet_jax.protocols import check_protocols

    config = _CONFIG.value
    if _PROTOCOL.value is not None:
        config.test.protocols = check_protocols(_PROTOCOL.value)
    if _MODE.value == "train":
        result = modes.run_training(config, _WORKDIR.value, _STRICT.value)
        best = "" if result.best_metric is None else f", best recall@50 {result.best_metric:.1%}"
        print(f"trained to step {result.step}{best}; checkpoints in {_WORKDIR.value}")
        return INTERRUPTED if result.interrupted else 0
    elif _MODE.value == "eval":
        modes.run_evaluation(config, _WORKDIR.value, _CHECKPOINT.value, _STRICT.value)
    elif _MODE.value == "score":
        modes.run_scoring(config, _PREDICTIONS.value, _WORKDIR.value)
    elif _MODE.value == "data":
        modes.run_data_report(config, _STRICT.value)
    elif _MODE.value == "replay":
        modes.run_replay(config, _WORKDIR.value)
    else:
        modes.run_anchors(config)
    return 0


def _join_processes() -> None:
    parts = {
        "coordinator": _COORDINATOR.value,
        "num_processes": _NUM_PROCESSES.value,
        "process_id": _PROCESS_ID.value,
    }
    given = [name for name, value in parts.items() if value is not None]
    if not given and not _CLUSTER.value:
        return
    if _CLUSTER.value and given:
        raise UserError(f"--cluster finds out what --{given[0]} says; give one of them")
    if given and len(given) < len(parts):
        missing = next(name for name in parts if name not in given)
        raise UserError(f"--{missing} is missing; --{given[0]} needs it")
    if given and parts["process_id"] >= parts["num_processes"]:
        raise UserError(
            f"--process_id={parts['process_id']} must be below "
            f"--num_processes={parts['num_processes']}"
        )
    from fnet_jax import multihost

    multihost.join(**parts)


def _run_inference(mode: str, inputs: list[str]) -> int:
    from fnet_jax.inference import commands

    trained = _CHECKPOINT.value, _CONFIG.value
    display = {"top_k": _TOP_K.value, "min_score": _MIN_SCORE.value}
    if mode == "predict":
        return commands.run_predict(
            *trained,
            inputs,
            _OUTPUT.value,
            boxes=_BOXES.value,
            every=_EVERY.value,
            pictures=_PICTURES.value,
            **display,
        )
    if mode == "serve":
        commands.run_serve(*trained, _HOST.value, _PORT.value, **display)
    else:
        commands.run_export(*trained, _OUTPUT.value, _PLATFORMS.value)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Runs the program; returns the exit status: 0, or 2 after a mistake of the user's.

    `--mode predict` returns `inference.commands.SOME_SKIPPED` if it could not use all files,
    `--mode train` `INTERRUPTED` if it was asked to stop.
    """
    # What libraries log as errors, with tracebacks, they also raise, and that becomes one line.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        return _run(_parse(argv if argv is not None else sys.argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was saved is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output left (e.g. `| head`): nothing to report, nowhere to report it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
