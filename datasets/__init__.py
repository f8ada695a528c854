"""The datasets by name, each built on its first use.

builder = load_builder("shapes", "", data_dir="data")
source = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
"""

import contextlib
import os
import pathlib
import shutil
import sys

import tensorflow_datasets as tfds

from fnet_jax.datasets import kmeans
from fnet_jax.datasets.psg import Psg
from fnet_jax.datasets.scene_graph_builder import SceneGraphBuilder
from fnet_jax.datasets.shapes import Shapes
from fnet_jax.datasets.vg150 import Vg150
from fnet_jax.datasets.vg_dr_net import VgDrNet
from fnet_jax.datasets.vg_msdn import VgMsdn
from fnet_jax.datasets.vrd import Vrd
from fnet_jax.errors import UserError

BUILDERS: dict[str, type[SceneGraphBuilder]] = {
    builder.name: builder for builder in (Shapes, Vrd, VgMsdn, VgDrNet, Vg150, Psg)
}

# So many skipped photos are named on screen; the metadata names all.
_NAMED = 20


def create_builder(name: str, builder_config: str, data_dir: str = "") -> SceneGraphBuilder:
    """The builder of a dataset, built or not.

    Args:
      name: a key of BUILDERS.
      builder_config: a variant of the dataset; "" is the default one.
      data_dir: where built datasets are kept; "" is TFDS's own default folder.

    Raises:
      UserError: the dataset or variant is unknown.
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
    return cls(file_format="array_record", **options)


def manual_folder(builder: SceneGraphBuilder, manual_dir: str) -> pathlib.Path | None:
    """The folder of the source files, None for a dataset without any.

    Raises:
      UserError: it is not named, does not exist, or lacks files.
    """
    if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return None
    source = pathlib.Path(manual_dir).expanduser() if manual_dir else None
    if source is None or not source.is_dir():
        state = f"the folder {source} does not exist" if source else "it is empty"
        needed = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        raise UserError(
            f"dataset.manual_dir must name the folder of the files of {builder.name}, "
            f"but {state}. {needed}"
        )
    builder.fingerprint(source)  # Complains about missing files.
    return source


def load_builder(
    name: str,
    builder_config: str,
    data_dir: str = "",
    manual_dir: str = "",
    strict: bool = False,
) -> SceneGraphBuilder:
    """The built dataset `name`, built first if `data_dir` does not hold it yet.

    Args:
      name, builder_config, data_dir: as for `create_builder`.
      manual_dir: the source files, for datasets that have any; not read once the dataset is built.
      strict: a photo that cannot be stored is an error, and nothing is built.

    Returns:
      A builder whose `info.metadata` and `as_data_source` are ready for use.

    Raises:
      UserError: the dataset or variant is unknown, source files are missing, or `data_dir` holds
        a build of other source files than those in `manual_dir`.
    """
    builder = create_builder(name, builder_config, data_dir)
    if not _is_built(builder):
        source = manual_folder(builder, manual_dir)
        builder.strict = strict
        try:
            _build(builder, source)
        except OSError as error:
            if not _is_built(builder):
                raise UserError(
                    f"dataset {name} cannot be built in {builder.data_dir} ({error}); "
                    "choose another dataset.data_dir or mend that"
                ) from error
            # Another process was faster; its build is as good.
            builder = create_builder(name, builder_config, data_dir)
    elif _differs(builder, manual_dir):
        other = f"other files than those in {manual_dir}" if manual_dir else "other settings"
        raise UserError(
            f"{builder.data_dir} was built from {other}; "
            "delete that folder or choose another dataset.data_dir"
        )
    elif strict:
        skipped = [name for part in builder.info.metadata["skipped"].values() for name, _ in part]
        if skipped:
            raise UserError(
                f"--strict: {builder.data_dir} was built without {len(skipped)} photos "
                f"({skipped[0]}, ...); delete that folder once they are there"
            )
    return builder


def _is_built(builder: SceneGraphBuilder) -> bool:
    return (pathlib.Path(builder.data_dir) / "dataset_info.json").exists()


def _differs(builder: SceneGraphBuilder, manual_dir: str) -> bool:
    """Whether the source is another than `builder` was built from; a gone one does not count."""
    source = None
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        source = pathlib.Path(manual_dir).expanduser()
        if not manual_dir or not source.is_dir():
            return False
    try:
        found = builder.fingerprint(source)
    except UserError:
        return False
    return found != builder.info.metadata["fingerprint"]


def _build(builder: SceneGraphBuilder, source: pathlib.Path | None) -> None:
    print(f"building dataset {builder.name} in {builder.data_dir}", file=sys.stderr)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    # TFDS announces an unknown download size on stdout; nothing is downloaded.
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=source)
        )
    if source is not None and (source / kmeans.FILE).is_file():
        shutil.copyfile(source / kmeans.FILE, kmeans.file_of(builder))
    for split, names in builder.info.metadata["wrong_sizes"].items():
        if names:
            print(
                f"{len(names)} {split} photos have another size than the source states "
                f"({names[0]}, ...); the size of the photo counts",
                file=sys.stderr,
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
