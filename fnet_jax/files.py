"""Writing files: never seen half written, and one clear line when it fails."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from fnet_jax.errors import UserError


def partial_of(path: pathlib.Path) -> pathlib.Path:
    """Where to write what is to have the name `path` once it is whole (`os.replace`)."""
    return path.with_name(path.name + ".partial")


@contextlib.contextmanager
def writing(path: str | os.PathLike, flag: str = "") -> Iterator[None]:
    """Turns a failure of the file system within the block into a UserError that names `path`.

    `flag` is named, too: the one that the path was given by.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{flag and flag + ': '}{os.fspath(path)} cannot be written "
            f"({error.strerror or error}); make room or choose another folder. "
            "What was whole before is kept"
        ) from error
