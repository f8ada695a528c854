"""What an evaluation leaves behind: scene graphs (JSONL), metrics (JSON), a table."""

import contextlib
import heapq
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping

import jax

from fnet_jax import multihost
from fnet_jax.errors import UserError
from fnet_jax.files import partial_of, writing
from fnet_jax.metrics import FNetRecall
from fnet_jax.metrics.sgb import TERTILES
from fnet_jax.protocols import RULES

_LABEL_WIDTH = 14


class ResultsWriter:
    """Writes JSONL line by line, readable while it grows, under its name once complete.

    Until the `with` block ends without an exception the lines are in `PATH.partial`; after an
    exception they stay there, and PATH, if it existed, is as it was.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self._partial = partial_of(self.path)

    def __enter__(self) -> "ResultsWriter":
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("w", encoding="utf-8")
        return self

    def write(self, line: Mapping) -> None:
        """Appends a line and hands it to the operating system."""
        self.write_text(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")

    def write_text(self, line: str) -> None:
        """Appends a line that is JSON already, with its line end."""
        with writing(self.path):
            self._file.write(line)
            self._file.flush()

    def __exit__(self, exception_type, exception, traceback) -> None:
        if exception_type is not None:
            with contextlib.suppress(OSError):  # The line that could not be written, once more.
                self._file.close()
            return
        with writing(self.path):
            self._file.close()
            os.replace(self._partial, self.path)


class PartWriter:
    """A `ResultsWriter` for all processes of a run, each with some of the images.

    At the end of the `with` block the first process joins their lines in the order of the images.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        count = jax.process_count()
        self._parts = [self.path]
        if count > 1:
            self._parts = [self.path.with_name(f"{self.path.name}.{i}") for i in range(count)]
        self._writer = ResultsWriter(self._parts[jax.process_index()])
        self._indices: list[int] = []

    def __enter__(self) -> "PartWriter":
        self._writer.__enter__()
        return self

    def write(self, line: Mapping, index: int) -> None:
        """Appends the line of image `index`; indices ascend."""
        self._writer.write(line)
        self._indices.append(index)

    def __exit__(self, exception_type, exception, traceback) -> None:
        self._writer.__exit__(exception_type, exception, traceback)
        if len(self._parts) == 1 or exception_type is not None:
            return
        indices = multihost.gather(self._indices)
        if multihost.is_first():
            self._join(indices)
        multihost.barrier("results are joined")

    def _join(self, indices: list[list[int]]) -> None:
        missing = [part for part in self._parts if not part.exists()]
        if missing:
            raise UserError(
                f"--workdir: {missing[0]} of another process is not here; all processes need to "
                "share the folder"
            )
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(part.open(encoding="utf-8")) for part in self._parts]
            rows = [zip(*part, strict=True) for part in zip(indices, files, strict=True)]
            writer = stack.enter_context(ResultsWriter(self.path))
            for _, line in heapq.merge(*rows):
                writer.write_text(line)
        for part in self._parts:
            part.unlink()


def read_results(path: str | os.PathLike) -> Iterator[dict]:
    """The lines of a JSONL file, one by one."""
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)


def write_metrics(path: str | os.PathLike, metrics: Mapping) -> None:
    """Writes metrics as JSON; never seen half written.

    Raises:
      ValueError: a metric is not finite.
      UserError: the file cannot be written.
    """
    path = pathlib.Path(path)
    text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
    partial = partial_of(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)


def format_table(metrics: Mapping) -> str:
    """Metrics of `fnet_jax.evaluate.evaluate` or of scored predictions, as a table for the screen.

    The protocols that were measured stand side by side, below their rules.
    """
    blocks, rules = [], []
    if kinds := _cut_offs(metrics, f"{FNetRecall.kinds[0]}_recall"):
        rules.append(RULES["fnet"])
        names = {kind: f"{kind}_recall@{{}}" for kind in ("relationship", "phrase", "predicate")}
        blocks.append(_block("F-Net, %", kinds, names, metrics))
    if kinds := _cut_offs(metrics, "sgb_R"):
        rules.append(RULES["sgb"])
        names = {name: f"sgb_{name}@{{}}" for name in ("R", "ngR", "mR", "zR", "A")}
        names |= {f"mR {part}": f"sgb_mR@{{}}_{part}" for part in TERTILES}
        present = {k: v for k, v in names.items() if v.format(kinds[0]) in metrics}
        blocks.append(_block("SGB, %", kinds, present, metrics))
    task = {
        "sgdet": "task SGDet: nothing given but the image",
        "sgcls": "task SGCls: annotated boxes given",
        "predcls": "task PredCls: annotated boxes and labels given",
    }[metrics["task"]]
    widths = [len(block[0]) for block in blocks]
    rows = itertools.zip_longest(*blocks, fillvalue="")
    table = [
        "  |  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    rule = "-" * len(table[1])
    lines = [task, *rules, rule, *table, rule]

    def row(label: str, value: str) -> None:
        lines.append(f"{label:<36}  {value}")

    if "mAP" in metrics:
        row("object mAP in % (VOC, IoU > 0.5)", f"{100.0 * metrics['mAP']:.3f}")
    for n in _cut_offs(metrics, "rpn_recall"):
        row(f"RPN recall@{n} in %", f"{100.0 * metrics[f'rpn_recall@{n}']:.3f}")
    if "subgraphs_average" in metrics:
        average, maximum = metrics["subgraphs_average"], metrics["subgraphs_maximum"]
        row("subgraphs per image", f"{average:.1f}, at most {maximum}")
        pairs, images = metrics["overflowed_pairs"], metrics["overflowed_images"]
        row("pairs left without a subgraph", f"{pairs} (in {images} images)" if pairs else "none")
    if "seconds_per_image" in metrics:
        row("seconds per image", f"{metrics['seconds_per_image']:.3f}")
    row("images", str(metrics["images"]))
    for key, label in (
        ("annotated_relationships", "relationships that count for F-Net"),
        ("sgb_annotated_relationships", "relationships that count for SGB"),
        ("sgb_zero_shot_images", "images with zero-shot relationships"),
    ):
        if key in metrics:
            row(label, str(metrics[key]))
    return "\n".join(lines)


def _block(title: str, cut_offs: list[int], names: Mapping[str, str], metrics: Mapping) -> list:
    """Lines of equal width: a header, a rule, and a row of percentages for each name."""
    header = f"{title:<{_LABEL_WIDTH}}" + "".join(f"{f'@{n}':>9}" for n in cut_offs)
    rows = [
        f"{label:<{_LABEL_WIDTH}}"
        + "".join(f"{100.0 * metrics[name.format(n)]:>9.3f}" for n in cut_offs)
        for label, name in names.items()
    ]
    return [header, "-" * len(header), *rows]


def _cut_offs(metrics: Mapping, name: str) -> list[int]:
    numbers = (key.removeprefix(f"{name}@") for key in metrics if key.startswith(f"{name}@"))
    return sorted(int(number) for number in numbers)
