"""The scene graph of an image by an exported network: needs jax, numpy and flatbuffers, no more.

    python run_exported.py network.fnet.zip photo.npy --output graph.json

photo.npy holds a (height, width, 3) uint8 RGB array; with Pillow installed any image file will do.
"""

import argparse
import json
import os
import sys
import zipfile

import jax
import numpy as np
from jax import export


class Network:
    """An exported network; a program is compiled when the first image of its size comes."""

    def __init__(self, path):
        self.archive = unpacked(path)
        self.manifest = json.loads(self.archive.read("manifest.json"))
        facts = self.manifest if isinstance(self.manifest, dict) else {}
        made_by = facts.get("format"), facts.get("version")
        if made_by != ("fnet-jax/exported", 1):
            raise ValueError(f"{path} has another format: {made_by}")
        unpacked(self.archive.open("weights.npz"))
        self.weights = jax.device_put(dict(np.load(self.archive.open("weights.npz"))))
        self.programs = {}

    def prepare(self, image):
        """(h, w, 3) uint8 RGB -> program file, padded image, (height, width, factor, h, w)."""
        sides, facts = np.array(image.shape[:2]), self.manifest
        factor = facts["test_scale"] / sides.min()
        if np.rint(factor * sides.max()) > facts["max_size"]:
            factor = facts["max_size"] / sides.max()
        resized = resize(image, factor)
        if facts["color_order"] == "bgr":
            resized = resized[..., ::-1]
        height, width = resized.shape[:2]
        fitting = [p for p in facts["programs"] if p["height"] >= height and p["width"] >= width]
        if not fitting:
            raise ValueError(f"no program takes {height} x {width} pixels (height x width)")
        program = min(fitting, key=lambda p: p["height"] * p["width"])
        padded = np.zeros((program["height"], program["width"], 3), np.uint8)
        padded[:height, :width] = resized
        return program["file"], padded, np.array([height, width, factor, *sides], np.float32)

    def __call__(self, image):
        """(h, w, 3) uint8 RGB -> dict of arrays, padded; the boxes are pixels of this image."""
        file, padded, info = self.prepare(image)
        if file not in self.programs:
            exported = export.deserialize(bytearray(self.archive.read(file)))
            self.programs[file] = jax.jit(exported.call)
        return jax.device_get(self.programs[file](self.weights, padded, info))


def unpacked(file):
    """A zip archive in which nothing is compressed, so that nothing is larger than the file."""
    archive = zipfile.ZipFile(file)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
        raise ValueError(f"{archive.filename or 'weights.npz'} is compressed, as no export is")
    return archive


def resize(image, factor):
    """Bilinear resizing by a factor; pixels are squares around their centres."""
    sizes = np.array(image.shape[:2])
    new_sizes = np.maximum(np.rint(sizes * factor).astype(int), 1)
    if (new_sizes == sizes).all():
        return image
    for axis in (0, 1):
        last = sizes[axis] - 1
        places = np.clip((np.arange(new_sizes[axis]) + 0.5) / factor - 0.5, 0, last)
        low = places.astype(int)
        share = (places - low)[:, None, None]
        image = image[low] * (1 - share) + image[np.minimum(low + 1, last)] * share
        image = image.swapaxes(0, 1)  # the other axis first; after two turns as before
    return np.rint(image).astype(np.uint8)


def read_image(path):
    if path.endswith(".npy"):
        image = np.load(path)
    else:
        try:
            from PIL import Image, ImageOps
        except ImportError:
            raise ImportError(f"{path} is no .npy file; to read it, install Pillow") from None
        image = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"{path} must hold (height, width, 3) uint8, not {image.shape} {image.dtype}"
        )
    return image


def named(graph, manifest):
    """Objects, and triplets from the best, without padding and with names."""
    used = np.flatnonzero(graph["object_mask"])
    position = {slot: index for index, slot in enumerate(used.tolist())}
    objects = [
        {
            "class": manifest["object_names"][graph["classes"][slot]],
            "box": graph["boxes"][slot].tolist(),
            "score": float(graph["scores"][slot]),
        }
        for slot in used
    ]
    triplets = [
        {
            "subject": position[int(graph["subjects"][row])],
            "predicate": manifest["predicate_names"][graph["predicates"][row]],
            "object": position[int(graph["objects"][row])],
            "score": float(graph["triplet_scores"][row]),
        }
        for row in np.flatnonzero(graph["triplet_mask"])
    ]
    return {"objects": objects, "triplets": triplets}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network")
    parser.add_argument("image")
    parser.add_argument("--output", help="write the graph to this file, as JSON")
    args = parser.parse_args()
    image = read_image(args.image)
    network = Network(args.network)
    graph = named(network(image), network.manifest)
    if args.output:
        about = {"schema": "fnet-jax/scene-graph", "version": 1}
        about |= {"image": os.path.basename(args.image)}
        about |= {"height": image.shape[0], "width": image.shape[1]}
        with open(args.output, "w", encoding="utf-8") as file:
            file.write(json.dumps(about | graph, ensure_ascii=False) + "\n")
    for triplet in graph["triplets"]:
        subject, other = (graph["objects"][triplet[end]]["class"] for end in ("subject", "object"))
        print(f"{triplet['score']:.4f}  {subject} - {triplet['predicate']} - {other}")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # A damaged file may make anything fail.
        message = " ".join(str(error).split()) or type(error).__name__
        sys.exit(f"run_exported: {message[:500]}")
