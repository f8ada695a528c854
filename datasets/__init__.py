"""The datasets by name, each built on its first use.

builder = load_builder("shapes", "", data_dir="data")
source = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
"""

import contextlib
import os
import pathlib
import sys

import tensorflow_datasets as tfds

from fnet_jax.datasets.schema import SceneGraphBuilder
from fnet_jax.datasets.shapes import Shapes
from fnet_jax.datasets.vrd import Vrd
from fnet_jax.errors import UserError

BUILDERS: dict[str, type[SceneGraphBuilder]] = {"shapes": Shapes, "vrd": Vrd}

# So many skipped photos are named on screen; the metadata names all.
_NAMED = 20


def load_builder(
    name: str, builder_config: str, data_dir: str = "", manual_dir: str = ""
) -> SceneGraphBuilder:
    """The built dataset `name`, built first if `data_dir` does not hold it yet.

    Args:
      name: a key of BUILDERS.
      builder_config: a variant of the dataset; "" is the default one.
      data_dir: where built datasets are kept; "" is TFDS's own default folder.
      manual_dir: the source files, for datasets that have any; not read once the dataset is built.

    Returns:
      A builder whose `info.metadata` and `as_data_source` are ready for use.

    Raises:
      UserError: the dataset or variant is unknown, source files are missing, or `data_dir` holds
        a build of other source files than those in `manual_dir`.
    """
    if name not in BUILDERS:
        raise UserError(f"dataset.name {name!r} is unknown; known: {', '.join(sorted(BUILDERS))}")
    cls = BUILDERS[name]
    if builder_config and builder_config not in cls.builder_configs:
        known = ", ".join(sorted(cls.builder_configs)) or "none (leave it empty)"
        raise UserError(
            f"dataset.builder_config {builder_config!r} is unknown for {name}; known: {known}"
        )
    options = {"config": builder_config} if builder_config else {}
    options["data_dir"] = os.path.expanduser(data_dir) or None
    source = pathlib.Path(manual_dir).expanduser() if manual_dir else None
    builder = cls(file_format="array_record", **options)
    if not _is_built(builder):
        try:
            _build(builder, source)
        except OSError as error:
            if not _is_built(builder):
                raise UserError(
                    f"dataset {name} cannot be built in {builder.data_dir} ({error}); "
                    "choose another dataset.data_dir or mend that"
                ) from error
            # Another process was faster; its build is as good.
            builder = cls(file_format="array_record", **options)
    elif _differs(builder, source):
        raise UserError(
            f"{builder.data_dir} was built from other files than those in {source}; "
            "delete that folder or choose another dataset.data_dir"
        )
    return builder


def _is_built(builder: SceneGraphBuilder) -> bool:
    return (pathlib.Path(builder.data_dir) / "dataset_info.json").exists()


def _differs(builder: SceneGraphBuilder, source: pathlib.Path | None) -> bool:
    """Whether `source` holds other files than `builder` was built from; gone ones do not count."""
    if source is None or not source.is_dir():
        return False
    try:
        found = builder.fingerprint(source)
    except UserError:
        return False
    return found != builder.info.metadata["fingerprint"]


def _build(builder: SceneGraphBuilder, source: pathlib.Path | None) -> None:
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        if source is None or not source.is_dir():
            state = f"the folder {source} does not exist" if source else "it is empty"
            needed = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
            raise UserError(
                f"dataset {builder.name} is not in {builder.data_dir}; to build it, "
                f"dataset.manual_dir must name the folder of its files, but {state}. {needed}"
            )
        builder.fingerprint(source)  # Complains about missing files before anything is written.
    print(f"building dataset {builder.name} in {builder.data_dir}", file=sys.stderr)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    # TFDS announces an unknown download size on stdout; nothing is downloaded.
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=source)
        )
    skipped = builder.info.metadata["skipped"]
    for split, entries in skipped.items():
        for filename, reason in entries[:_NAMED]:
            print(f"skipped {split} photo {filename}: {reason}", file=sys.stderr)
        if len(entries) > _NAMED:
            print(f"skipped {len(entries) - _NAMED} more {split} photos", file=sys.stderr)
    if any(skipped.values()):
        print(
            f"all skipped photos are named in {builder.data_dir}/metadata.json; "
            "once they are there, delete that folder to build it again",
            file=sys.stderr,
        )
