"""Draws scene graphs: the image with its objects on the left, the graph on the right.

Works on the dicts of `fnet_jax.results`, on detections and annotations alike. Figures are made
without pyplot, so that nothing global is opened, chosen or leaked.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.transforms import Bbox

from fnet_jax.files import writing
from fnet_jax.inference.selection import select

_ROW_SIZE = (15.0, 7.0)  # inches
_DPI = 110
_FONT_SIZE = 10
# Dark and saturated tones of a qualitative palette; light ones vanish on photos.
_COLORS = [
    *matplotlib.colormaps["tab10"].colors,
    *matplotlib.colormaps["Dark2"].colors,
]

# Arrows bend to one side, so that those of (i, j) and (j, i) do not coincide.
_BEND = 0.14


class _Node(NamedTuple):
    name: str  # class and number, "circle 2"
    box: list[float]
    color: tuple[float, float, float]


class _Edge(NamedTuple):
    subject: int
    object: int
    label: str


def draw_scene_graph(
    image: np.ndarray,
    graph: dict,
    path: str | os.PathLike,
    *,
    annotation: dict | None = None,
    top_k: int = 15,
    min_score: float = 0.0,
) -> None:
    """Writes a picture (PNG, or what the ending of `path` says) of an image and its scene graph.

    Args:
      image: (h, w, 3) uint8 RGB, the original image, whose pixels the boxes are in.
      graph: a line of the results file, `fnet_jax.results.graph_to_dict`.
      path: where the picture goes; missing folders are made.
      annotation: what is annotated, in the same form; fills a second row if given.
      top_k: at most so many relationships are drawn: the best, one predicate per pair. Only
        objects that take part in one are drawn, or, if there is none, the `top_k` best.
      min_score: relationships (or objects, see `top_k`) below this are left out.
    """
    rows = [("detected", *_select(graph, top_k, min_score))]
    if annotation is not None:
        count = len(annotation["triplets"])
        rows.append(("annotated", *_select(annotation, count, 0.0)))
    width, height = _ROW_SIZE
    figure = Figure(figsize=(width, height * len(rows)), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), 2, squeeze=False)
    for (left, right), (kind, _, _) in zip(axes, rows, strict=True):
        left.set_title(f"{graph['image']}: {kind} objects", fontsize=_FONT_SIZE + 1)
        right.set_title(f"{kind} relationships", fontsize=_FONT_SIZE + 1)
        _show_image(left, image)
        _show_frame(right)
    # Labels are placed by their size in pixels, which is known once the axes are laid out.
    canvas.draw()
    figure.set_layout_engine("none")
    for (left, right), (_, nodes, edges) in zip(axes, rows, strict=True):
        _draw_boxes(left, nodes)
        _draw_graph(right, nodes, edges)
    path = pathlib.Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def _select(graph: dict, top_k: int, min_score: float) -> tuple[list[_Node], list[_Edge]]:
    indices, relations = select(graph, top_k, min_score)
    nodes = []
    counts: dict[str, int] = {}
    for position, index in enumerate(indices):
        found = graph["objects"][index]
        name = found["class"]
        counts[name] = counts.get(name, 0) + 1
        color = to_rgb(_COLORS[position % len(_COLORS)])
        nodes.append(_Node(f"{name} {counts[name]}", found["box"], color))
    node_of = {index: position for position, index in enumerate(indices)}
    edges = [_Edge(node_of[r.subject], node_of[r.object], r.predicate) for r in relations]
    return nodes, edges


def _show_image(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, interpolation="nearest" if max(image.shape) < 200 else "antialiased")
    axes.set_axis_off()


def _show_frame(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlim(-1.3, 1.3)
    axes.set_ylim(-1.2, 1.4)  # room for the label of a self-relation at the top
    for spine in axes.spines.values():
        spine.set_color("0.85")


class _Labels:
    """Texts on axes that keep out of each other's way, and out of that of other things."""

    def __init__(self, axes: Axes):
        self.axes = axes
        self.taken: list[Bbox] = []

    def place(self, text: str, spots: Sequence[tuple[float, float, str, str]], **style) -> Bbox:
        """Puts a text at the first free of `spots` (x, y, ha, va), or else at the least covered.

        Returns: the rectangle it takes, in pixels of the canvas.
        """
        artist = self.axes.text(0, 0, text, clip_on=False, zorder=5, **style)
        inside = self.axes.get_window_extent()
        costs = []
        for x, y, ha, va in spots:
            artist.set(x=x, y=y, ha=ha, va=va)
            extent = self._extent(artist)
            covered = sum(_overlap_area(extent, other) for other in self.taken)
            beyond = extent.width * extent.height - _overlap_area(extent, inside)
            costs.append(covered + 2.0 * beyond)
        x, y, ha, va = spots[int(np.argmin(costs))]
        artist.set(x=x, y=y, ha=ha, va=va)
        self.taken.append(self._extent(artist))
        return self.taken[-1]

    def _extent(self, artist) -> Bbox:
        # The coloured patch around a text is larger than the text.
        return artist.get_window_extent(self.axes.figure.canvas.get_renderer()).padded(3.0)


def _overlap_area(a: Bbox, b: Bbox) -> float:
    both = Bbox.intersection(a, b)
    return 0.0 if both is None else both.width * both.height


def _draw_boxes(axes: Axes, nodes: Sequence[_Node]) -> None:
    labels = _Labels(axes)
    for node in nodes:
        x1, y1, x2, y2 = node.box
        # Box pixels are inclusive and the centre of pixel 0 is at 0.
        corner, sides = (x1 - 0.5, y1 - 0.5), (x2 - x1 + 1.0, y2 - y1 + 1.0)
        axes.add_patch(Rectangle(corner, *sides, fill=False, edgecolor=node.color, linewidth=2.2))
    # Small boxes have the fewest good places for a label, so they choose first.
    for node in sorted(nodes, key=lambda n: (n.box[2] - n.box[0]) * (n.box[3] - n.box[1])):
        x1, y1, x2, y2 = node.box
        spots = [
            (x1, y1, "left", "bottom"),
            (x2, y1, "right", "bottom"),
            (x1, y2, "left", "top"),
            (x2, y2, "right", "top"),
            (x1, y1, "left", "top"),
            (x2, y1, "right", "top"),
            (x1, y2, "left", "bottom"),
            (x2, y2, "right", "bottom"),
            (x2, (y1 + y2) / 2, "left", "center"),
            (x1, (y1 + y2) / 2, "right", "center"),
            ((x1 + x2) / 2, (y1 + y2) / 2, "center", "center"),
        ]
        labels.place(node.name, spots, **_node_style(node))


def _node_style(node: _Node) -> dict:
    brightness = float(np.dot(node.color, (0.299, 0.587, 0.114)))
    return {
        "fontsize": _FONT_SIZE,
        "color": "black" if brightness > 0.6 else "white",
        "bbox": {"facecolor": node.color, "edgecolor": "none", "pad": 2.0},
    }


def _draw_graph(axes: Axes, nodes: Sequence[_Node], edges: Sequence[_Edge]) -> None:
    if not edges:
        axes.text(0, 0, "none", ha="center", va="center", fontsize=_FONT_SIZE, color="0.4")
        return
    positions = _layout(nodes, edges)
    labels = _Labels(axes)
    for node, (x, y) in zip(nodes, positions, strict=True):
        labels.place(node.name, [(x, y, "center", "center")], **_node_style(node))
    node_extents = list(labels.taken)
    style = {"arrowstyle": "-|>", "mutation_scale": 14, "color": "0.45", "linewidth": 1.3}
    for edge in edges:
        start, end = positions[edge.subject], positions[edge.object]
        spots = _edge_label_spots(start, end)
        if edge.subject == edge.object:
            left, right = start + np.array([[-0.06, 0.05], [0.06, 0.05]])
            loop = FancyArrowPatch(left, right, connectionstyle="arc3,rad=-1.8", **style)
            axes.add_patch(loop)
        else:
            from_pixel, to_pixel = axes.transData.transform([start, end])
            control = (from_pixel + to_pixel) / 2 + _BEND * _normal(to_pixel - from_pixel)
            # The arrow ends at the label of a node instead of below it.
            ends = [
                _leave(node_extents[edge.subject], from_pixel, control),
                _leave(node_extents[edge.object], to_pixel, control),
            ]
            arrow = FancyArrowPatch(
                *axes.transData.inverted().transform(ends),
                connectionstyle=f"arc3,rad={_BEND}",
                shrinkA=0,
                shrinkB=0,
                **style,
            )
            axes.add_patch(arrow)
        labels.place(
            edge.label,
            spots,
            fontsize=_FONT_SIZE - 1,
            color="0.1",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0},
        )


def _normal(vector: np.ndarray) -> np.ndarray:
    """The vector turned towards the side on which `arc3` with a positive `rad` bends."""
    return np.array([vector[1], -vector[0]])


def _leave(extent: Bbox, centre: np.ndarray, towards: np.ndarray) -> np.ndarray:
    """Where the line from the centre of a rectangle towards a point leaves the rectangle."""
    direction = towards - centre
    with np.errstate(divide="ignore"):
        reach = np.min(np.array([extent.width, extent.height]) / 2 / np.abs(direction))
    return centre + min(reach, 1.0) * direction


def _edge_label_spots(start: np.ndarray, end: np.ndarray) -> list[tuple[float, float, str, str]]:
    if np.array_equal(start, end):
        return [(start[0], start[1] + 0.16, "center", "bottom")]
    control = (start + end) / 2 + _BEND * _normal(end - start)
    spots = []
    for t in (0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74):
        point = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end
        spots.append((*point, "center", "center"))
    return spots


def _layout(nodes: Sequence[_Node], edges: Sequence[_Edge]) -> np.ndarray:
    """Positions (n, 2) in [-1, 1]: related nodes are close; the image's own layout is the start."""
    graph = nx.Graph()
    graph.add_nodes_from(range(len(nodes)))
    graph.add_edges_from((edge.subject, edge.object) for edge in edges)
    if len(nodes) == 1:
        return np.zeros((1, 2))
    lengths = dict(nx.all_pairs_shortest_path_length(graph))
    longest = max(max(row.values()) for row in lengths.values())
    # Parts that are not connected stay apart by more than any two connected nodes.
    distance = {
        i: {j: lengths[i].get(j, longest + 1) if i != j else 0 for j in graph} for i in graph
    }
    centres = np.array([[(n.box[0] + n.box[2]) / 2, -(n.box[1] + n.box[3]) / 2] for n in nodes])
    start = centres + 1e-3 * np.random.default_rng(0).standard_normal(centres.shape)
    spread = np.ptp(start, axis=0)
    start = (start - start.min(axis=0)) / np.where(spread > 0, spread, 1.0) * 2 - 1
    found = nx.kamada_kawai_layout(graph, dist=distance, pos=dict(enumerate(start)))
    positions = np.array([found[i] for i in graph])
    low, high = positions.min(axis=0), positions.max(axis=0)
    return (positions - low) / np.where(high - low > 1e-6, high - low, 1.0) * 2 - 1
