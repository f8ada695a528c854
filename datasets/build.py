"""TFDS' build command for the datasets of this project, without TensorFlow.

    python -m fnet_jax.datasets.build vg_msdn --config small --manual_dir FOLDER --data_dir DATA

TFDS 4.9.10's own `tfds` script imports TensorFlow; the command behind it does not need it.
"""

import sys

import simple_parsing
from tensorflow_datasets.scripts.cli import build

from fnet_jax.errors import UserError


def main(arguments: list[str]) -> int:
    """Runs `tfds build` with these arguments; returns the exit status."""
    ours = ["--imports", "fnet_jax.datasets", "--file_format", "array_record"]
    try:
        simple_parsing.parse(build.Args, args=[*arguments, *ours]).execute()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
