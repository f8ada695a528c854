"""What is in the source files of a dataset, and what is wrong with them, before it is built."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterator

from fnet_jax.datasets.scene_graph_builder import SceneGraphBuilder
from fnet_jax.datasets.schema import Annotation, Scene, Skipped, Vocabulary, faults

# So many images are named for each finding.
_NAMED = 3

# What is counted but no mistake: real annotations have it, and every reader has to choose.
ODDITIES = {
    "repeated": "relationships annotated more than once",
    "several": "pairs with several predicates",
    "self": "objects related to themselves",
    "outside": "boxes that end outside the image",
}
# What keeps an image or a build from being right.
MISTAKES = {
    "unreadable": "photos missing or unreadable",
    "size": "photos of another size than stated",
    "name": "images listed more than once",
    "count": "images with too many objects",
    "box": "boxes that are none (x2 < x1, y2 < y1, not finite)",
    "class": "class ids outside the vocabulary",
    "predicate": "predicate ids outside the vocabulary",
    "relationship": "relationships of objects that are not there",
}


@dataclasses.dataclass
class Finding:
    """How often something was found, and the first images that have it."""

    count: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)

    def add(self, filename: str, count: int = 1) -> None:
        """Adds `count` cases on one image."""
        if not count:
            return
        self.count += count
        if len(self.examples) < _NAMED and filename not in self.examples:
            self.examples.append(filename)


class SplitReport:
    """Counts over the annotated images of one split, readable photo or not."""

    def __init__(self, vocabulary: Vocabulary):
        self._vocabulary = vocabulary
        self.counts = collections.Counter()
        self.findings = {kind: Finding() for kind in (*ODDITIES, *MISTAKES)}
        self._names: set[str] = set()
        self._labels: collections.Counter = collections.Counter()
        self._predicates: collections.Counter = collections.Counter()

    def add(self, item: Scene | Skipped) -> None:
        """Adds an image of the split."""
        annotation = item.annotation
        filename = annotation.filename
        self.findings["name"].add(filename, filename in self._names)
        self._names.add(filename)
        if isinstance(item, Skipped):
            self.findings["unreadable"].add(f"{filename} ({item.reason})")
        else:
            size = item.height, item.width
            self.findings["size"].add(filename, annotation.stated_size not in (None, size))
            self.findings["outside"].add(filename, _outside(annotation, *size))
        triples = [tuple(triple) for triple in annotation.relationships]
        pairs = collections.Counter(triple[:2] for triple in set(triples))
        self.counts["images"] += 1
        self.counts["images with relationships"] += bool(triples)
        self.counts["objects"] += len(annotation.labels)
        self.counts["relationships"] += len(triples)
        self.counts["unique triplets"] += len(set(triples))
        self.counts["unique ordered pairs"] += len(pairs)
        self.counts["regions"] += len(annotation.regions)
        self.findings["repeated"].add(filename, len(triples) - len(set(triples)))
        self.findings["several"].add(filename, sum(count > 1 for count in pairs.values()))
        self.findings["self"].add(filename, sum(subject == object_ for subject, object_ in pairs))
        self._labels.update(annotation.labels)
        self._predicates.update(triple[2] for triple in triples)
        for fault in faults(annotation, self._vocabulary):
            self.findings[fault.kind].add(filename)

    @property
    def mistakes(self) -> int:
        """How many findings are no mere oddities."""
        return sum(self.findings[kind].count for kind in MISTAKES)

    @property
    def oddities(self) -> int:
        """How many findings are mere oddities."""
        return sum(self.findings[kind].count for kind in ODDITIES)

    def lines(self) -> Iterator[str]:
        """The report for people."""
        for name, count in self.counts.items():
            if count or name != "regions":
                yield f"  {name:<52}{count:>9}"
        for name, seen, known in (
            ("object classes in use", self._labels, self._vocabulary.object_classes),
            ("predicates in use", self._predicates, self._vocabulary.predicates),
        ):
            used = sum(1 for index in range(1, len(known)) if seen[index])
            yield f"  {name:<52}{used:>9} of {len(known) - 1}"
        for kind, description in (ODDITIES | MISTAKES).items():
            finding = self.findings[kind]
            more = ", ..." if finding.count > len(finding.examples) else ""
            named = f"  {', '.join(finding.examples)}{more}" if finding.examples else ""
            yield f"  {description:<52}{finding.count:>9}{named}"
        for name, seen, known in (
            ("class", self._labels, self._vocabulary.object_classes),
            ("predicate", self._predicates, self._vocabulary.predicates),
        ):
            if seen and min(seen) == 0 and max(seen) < len(known) - 1:
                yield (
                    f"  {name} ids run from 0 to {max(seen)}: "
                    f"they seem to count from 0, where the format counts from 1"
                )


def report(
    builder: SceneGraphBuilder, source: pathlib.Path | None, split: str, scenes=None
) -> SplitReport:
    """Reads all annotations and photos of one split of a source.

    Args:
      builder: of the dataset; it need not be built.
      source: the manual directory, None for a dataset without source files.
      split: its name.
      scenes: wraps the iterator of images, e.g. for a progress bar.

    Raises:
      UserError: a file is missing or not in the format of the dataset.
    """
    found = SplitReport(builder.vocabulary(source))
    images = builder.scenes(source, split)
    for item in scenes(images) if scenes else images:
        found.add(item)
    return found


def _outside(annotation: Annotation, height: int, width: int) -> int:
    return sum(
        len(box) == 4 and (min(box[0], box[1]) < 0 or box[2] > width - 1 or box[3] > height - 1)
        for box in annotation.boxes
    )
