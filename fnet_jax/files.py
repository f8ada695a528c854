"""Files that are never seen half written."""

import pathlib


def partial_of(path: pathlib.Path) -> pathlib.Path:
    """Where to write what is to have the name `path` once it is whole (`os.replace`)."""
    return path.with_name(path.name + ".partial")
