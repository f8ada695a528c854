"""The command line: flags, config overrides, and one clear line for every mistake."""

import logging
import os
import sys

from absl import flags
from ml_collections import config_flags

from fnet_jax import compilation_cache
from fnet_jax.errors import UserError

# Which flags each mode needs, and which others it knows.
MODES = {
    "train": (("workdir",), ("strict",)),
    "eval": (("workdir",), ("checkpoint", "protocol", "strict")),
    "data": ((), ("strict",)),
    "anchors": ((), ()),
    "score": (("predictions",), ("protocol", "workdir")),
}

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "experiment, e.g. configs/shapes.py; override with --config.field=value"
)
_MODE = flags.DEFINE_enum(
    "mode",
    None,
    list(MODES),
    "train; eval: measure a checkpoint; score: measure predictions of any program; data: report on "
    "a dataset's source files; anchors: cluster its boxes",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of checkpoints, logs and results")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "what to evaluate: a published .h5 file, a workdir or a checkpoint folder"
)
_PREDICTIONS = flags.DEFINE_string("predictions", "", "JSONL file to score")
_PROTOCOL = flags.DEFINE_list(
    "protocol", None, "fnet, sgb or both (fnet,sgb); overrides config.test.protocols"
)
_STRICT = flags.DEFINE_bool(
    "strict", False, "photos that cannot be stored, or any finding of --mode data, are errors"
)


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
    for name in ("config", "mode"):
        if not flags.FLAGS[name].present:
            raise UserError(f"--{name} is missing; see --help")
    _check_flags_of_mode(_MODE.value)
    path = config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0]
    if not os.path.isfile(path):
        raise UserError(f"--config: there is no file {path}")


def _check_flags_of_mode(mode: str) -> None:
    needed, known = MODES[mode]
    for name in ("workdir", "checkpoint", "predictions", "protocol", "strict"):
        present = flags.FLAGS[name].present
        if name in needed and not present:
            raise UserError(f"--{name} is missing; --mode {mode} needs it")
        if present and name not in (*needed, *known):
            users = " or ".join(m for m, names in MODES.items() if name in (*names[0], *names[1]))
            hint = ""
            if (name, mode) == ("checkpoint", "train"):
                hint = "; training starts from config.train.init_from"
            raise UserError(f"--{name} is for --mode {users}{hint}")


def _run() -> None:
    # Before anything imports JAX.
    compilation_cache.enable()
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
    elif _MODE.value == "eval":
        modes.run_evaluation(config, _WORKDIR.value, _CHECKPOINT.value, _STRICT.value)
    elif _MODE.value == "score":
        modes.run_scoring(config, _PREDICTIONS.value, _WORKDIR.value)
    elif _MODE.value == "data":
        modes.run_data_report(config, _STRICT.value)
    else:
        modes.run_anchors(config)


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
