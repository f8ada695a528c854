"""The command line: flags, config overrides, and one clear line for every mistake."""

import logging
import os
import sys

from absl import flags
from ml_collections import config_flags

from fnet_jax.errors import UserError

MODES = ("train", "eval")

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "experiment, e.g. configs/shapes.py; override with --config.field=value"
)
_MODE = flags.DEFINE_enum("mode", None, MODES, "what to do")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of checkpoints, logs and results")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "what to evaluate: a published .h5 file, a workdir or a checkpoint folder"
)
_REQUIRED = ("config", "mode", "workdir")


def _parse(argv: list[str]) -> None:
    """Parses flags and loads the config; anything wrong with them becomes a UserError."""
    try:
        rest = flags.FLAGS(argv)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections quotes its messages, sometimes twice.
        text = str(error).replace("\\n", " ").replace("\\", "").replace("'", "")
        raise UserError(
            f"{' '.join(text.split())} (flags: --help; fields: configs/base.py)"
        ) from error
    if rest:
        raise UserError(f"unknown argument {rest[0]!r}; see --help")
    for name in _REQUIRED:
        if not flags.FLAGS[name].present:
            raise UserError(f"--{name} is missing; see --help")
    path = config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0]
    if not os.path.isfile(path):
        raise UserError(f"--config: there is no file {path}")


def _run() -> None:
    # Imported late: a mistyped flag should not wait for datasets and checkpoints to load.
    from fnet_jax import experiment

    config = _CONFIG.value
    if _CHECKPOINT.value and _MODE.value != "eval":
        raise UserError(
            "--checkpoint is for --mode eval; training starts from config.train.init_from"
        )
    if _MODE.value == "train":
        result = experiment.run_training(config, _WORKDIR.value)
        best = "" if result.best_metric is None else f", best recall@50 {result.best_metric:.1%}"
        print(f"trained to step {result.step}{best}; checkpoints in {_WORKDIR.value}")
    else:
        experiment.run_evaluation(config, _WORKDIR.value, _CHECKPOINT.value)


def main(argv: list[str] | None = None) -> int:
    """Runs the program; returns the exit status: 0, or 2 after a mistake of the user's."""
    logging.getLogger("absl").setLevel(logging.WARNING)
    try:
        _parse(argv if argv is not None else sys.argv)
        _run()
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
    return 0
