"""What README.md shows works as it stands there."""

import json
import pathlib
import re

import h5py
import numpy as np

from fnet_jax.configs import base
from tests.conftest import golden_dir

ROOT = pathlib.Path(__file__).parent.parent


def test_python_example(tmp_path, monkeypatch):
    """The published VRD model: random numbers in its place, with every key and shape."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (code,) = [block for block in blocks if "Model-VRD.h5" in block]
    monkeypatch.chdir(tmp_path)
    shapes = json.loads((golden_dir() / "manifest_VRD.json").read_text())
    with h5py.File("Model-VRD.h5", "w") as file:
        for key, shape in shapes.items():
            file[key] = np.zeros(shape, np.float32)
    anchors = base.get_config().anchors
    content = {"anchor_scales_kmeans": anchors.scales, "anchor_ratios_kmeans": anchors.ratios}
    pathlib.Path("kmeans_anchors.json").write_text(json.dumps(content))
    names = {}
    exec(code, names)
    assert names["params"]["predicate_score"]["kernel"].shape == (512, 71)


def test_files_that_are_linked_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://)([^)#]+)", text)
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []
