"""The examples of docs/predict.md, run as they stand."""

import doctest

import numpy as np
from PIL import Image

from tests.inference.checkpoints import save_random
from tests.test_cli import ROOT


def test_examples(tmp_path, monkeypatch):
    save_random(tmp_path / "runs" / "shapes")
    (tmp_path / "photos").mkdir()
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "photos" / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    done = doctest.testfile(str(ROOT / "docs" / "predict.md"), module_relative=False)
    assert done.attempted > 15 and done.failed == 0
    assert (tmp_path / "cat.png").stat().st_size > 10_000
