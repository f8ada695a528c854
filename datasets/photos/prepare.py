"""Lays out the six photos as VRD does: `python -m fnet_jax.datasets.photos.prepare OUT`."""

import json
import pathlib
import shutil
import sys

import cv2

FOLDER = pathlib.Path(__file__).parent


def photo(name: str):
    """A photo of `skimage.data`, (h, w, 3) uint8 RGB; grey ones repeat their channel."""
    import skimage.data

    stem = pathlib.Path(name).stem
    if stem == "motorcycle_left":
        image = skimage.data.stereo_motorcycle()[0]
    else:
        image = getattr(skimage.data, stem)()
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image


def prepare(out: str | pathlib.Path) -> None:
    """Writes `json_dataset/` and `sg_dataset/` below `out`."""
    out = pathlib.Path(out)
    annotations, photos = out / "json_dataset", out / "sg_dataset"
    for folder in (annotations, photos):
        folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        shutil.copy(FOLDER / "annotations.json", annotations / f"annotations_{split}.json")
    for names in ("objects.json", "predicates.json"):
        shutil.copy(FOLDER / names, annotations / names)
    for name in json.loads((FOLDER / "annotations.json").read_text()):
        # PNG bytes whatever the name says: the pixels must be the library's own.
        encoded = cv2.imencode(".png", cv2.cvtColor(photo(name), cv2.COLOR_RGB2BGR))[1]
        (photos / name).write_bytes(encoded.tobytes())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m fnet_jax.datasets.photos.prepare OUT")
    prepare(sys.argv[1])
