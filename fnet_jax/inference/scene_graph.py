"""The scene graph of an image, for people and programs that use it: names instead of numbers."""

import dataclasses
import os
from collections.abc import Mapping

import networkx as nx
import numpy as np

from fnet_jax.predictions import SCHEMA, VERSION


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """A detected object.

    Attributes:
      name: of its class.
      box: (x1, y1, x2, y2), inclusive pixels of the original image.
      score: in [0, 1]; low for a second detection of the same object.
    """

    name: str
    box: tuple[float, float, float, float]
    score: float


@dataclasses.dataclass(frozen=True)
class Triplet:
    """A relationship; `subject` and `object` are positions in the graph's `objects`."""

    subject: int
    predicate: str
    object: int
    score: float


@dataclasses.dataclass(frozen=True)
class SceneGraph:
    """Objects, and relationships among them from the most to the least certain.

    Attributes:
      image: file name, or "" where there was none.
      height, width: of the original image, pixels.
    """

    image: str
    height: int
    width: int
    objects: tuple[SceneObject, ...]
    triplets: tuple[Triplet, ...]

    @classmethod
    def from_dict(cls, line: Mapping) -> "SceneGraph":
        """From a line of a results file (`fnet_jax.predictions`)."""
        return cls(
            image=line["image"],
            height=line["height"],
            width=line["width"],
            objects=tuple(
                SceneObject(item["class"], tuple(item["box"]), item["score"])
                for item in line["objects"]
            ),
            triplets=tuple(
                Triplet(item["subject"], item["predicate"], item["object"], item["score"])
                for item in line["triplets"]
            ),
        )

    def to_dict(self) -> dict:
        """A line of a results file, for `json.dumps`."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "image": self.image,
            "height": self.height,
            "width": self.width,
            "objects": [
                {"class": item.name, "box": list(item.box), "score": item.score}
                for item in self.objects
            ],
            "triplets": [dataclasses.asdict(triplet) for triplet in self.triplets],
        }

    def to_networkx(self) -> nx.MultiDiGraph:
        """Nodes are positions of objects with `name`, `box` and `score`; edges have `predicate`
        and `score`, the predicate being their key."""
        graph = nx.MultiDiGraph(image=self.image, height=self.height, width=self.width)
        for index, item in enumerate(self.objects):
            graph.add_node(index, **dataclasses.asdict(item))
        for triplet in self.triplets:
            graph.add_edge(
                triplet.subject,
                triplet.object,
                key=triplet.predicate,
                predicate=triplet.predicate,
                score=triplet.score,
            )
        return graph

    def plot(
        self,
        image: np.ndarray,
        path: str | os.PathLike,
        *,
        top_k: int = 15,
        min_score: float = 0.0,
    ) -> None:
        """Writes a picture (PNG, or what the ending says): `image` with boxes beside the graph.

        Args:
          image: (h, w, 3) uint8 RGB, the original image.
          path: where the picture goes; missing folders are made.
          top_k, min_score: at most so many relationships, none below this score.
        """
        # Imported late: matplotlib takes a second.
        from fnet_jax.visualise import draw_scene_graph

        draw_scene_graph(image, self.to_dict(), path, top_k=top_k, min_score=min_score)

    def __str__(self) -> str:
        """The ten best relationships, a line each."""
        lines = [
            f"{self.objects[t.subject].name} - {t.predicate} - {self.objects[t.object].name}  "
            f"({t.score:.3g})"
            for t in self.triplets[:10]
        ]
        return "\n".join(lines) if lines else "no relationship"
