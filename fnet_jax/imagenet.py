"""ImageNet VGG16 weights as a starting point: torchvision's (.pth, .safetensors) and Keras' (.h5).

torchvision's network was trained on RGB images in [0, 1], minus mean, over standard deviation: the
normalisation used here. Keras' was trained on BGR images in 0..255 minus a mean colour; that
difference is folded into the first layer, see `fold_keras_input`.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from fnet_jax.errors import UserError, reason, shown
from fnet_jax.hdf5 import open_arrays
from fnet_jax.weights import VGG16_FEATURES, Entry, Layout, layout_entries, read_entries

# Normalisation of torchvision's models, in units of the image range [0, 1]; channels R, G, B.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)

# What Keras subtracts from images in 0..255; channels B, G, R.
KERAS_MEAN_BGR = (103.939, 116.779, 123.68)

_COLOR_ORDERS = ("bgr", "rgb")
_TORCH_ENDINGS = (".pth", ".pt")
_KERAS_ENDINGS = (".h5", ".hdf5")
# Types that NumPy lacks are an AttributeError, shapes that it cannot have a ValueError.
_SAFETENSORS_DAMAGED = (safetensors.SafetensorError, OSError, AttributeError, ValueError)
_ADVICE = "it must hold the plain VGG16, and config.model.vgg_widths its widths"


def load_vgg16(
    path: str | os.PathLike,
    color_order: str,
    backbone_template: Mapping,
    *,
    mean: Sequence[float] = IMAGE_MEAN,
    std: Sequence[float] = IMAGE_STD,
) -> dict:
    """Reads the convolutions of an ImageNet VGG16; its classifier is ignored.

    torchvision weights are taken as they are for both colour orders. For "bgr" this means that BGR
    images enter filters made for RGB ones: so was the original trained (its quirk), and the first
    layers, which stay frozen there, are those of the published checkpoints.
    Keras weights are adapted to `color_order`, `mean` and `std`, and see the right colours.

    Args:
      path: `.pth` or `.pt` (torchvision's `state_dict`; needs torch), `.safetensors` with
        torchvision's key names, or `.h5` of `keras.applications.VGG16` in any of its layouts.
      color_order: "bgr" or "rgb", channel order of the network's input.
      backbone_template: arrays or `jax.ShapeDtypeStruct`s of our backbone.
      mean, std: normalisation of the network's input, channels in the order of the input.

    Returns:
      Backbone parameters of the template's structure, shapes and dtypes, as NumPy arrays.

    Raises:
      UserError: the file is missing, unreadable or of unknown kind, torch is needed and absent, or
        the file holds another network; the message lists every key that does not fit.
    """
    if color_order not in _COLOR_ORDERS:
        raise UserError(f"image.color_order is {color_order!r}; it must be one of: bgr, rgb")
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}; correct the path of the VGG16 weights")
    ending = path.suffix.lower()
    template = {"backbone": backbone_template}
    if ending in _KERAS_ENDINGS:
        backbone = _read_keras(path, template)
        return fold_keras_input(backbone, color_order, mean=mean, std=std)
    if ending in _TORCH_ENDINGS:
        found = _read_torch(path)
    elif ending == ".safetensors":
        found = _read_safetensors(path)
    else:
        known = ", ".join((*_TORCH_ENDINGS, ".safetensors", *_KERAS_ENDINGS))
        raise UserError(f"{path} is of unknown kind; VGG16 weights end in {known}")
    found = {key: found[key] for key in found if not key.startswith("classifier.")}
    # The published checkpoints kept torchvision's keys, with a prefix.
    entries = [
        dataclasses.replace(entry, key=entry.key.removeprefix("rpn."))
        for entry in layout_entries(template)
    ]
    return read_entries(path, found, entries, template, advice=_ADVICE)["backbone"]


def fold_keras_input(
    backbone: Mapping,
    color_order: str,
    *,
    mean: Sequence[float] = IMAGE_MEAN,
    std: Sequence[float] = IMAGE_STD,
) -> dict:
    """Rewrites the first layer for our input instead of Keras' (BGR, 0..255, minus a mean colour).

    With n our normalised value of a channel, the pixel is `255 (std n + mean)` and Keras' input
    `255 std n + (255 mean - keras_mean)`. The factor goes into the kernel, the constant into the
    bias, both exact.

    Zero padding is the exception: outside the image Keras' input is 0, ours stands for the colour
    `255 mean`. So the outermost row and column of the first feature map (and of nothing else in
    that layer) differ by the taps outside the image times `255 mean - keras_mean`. For statistics
    in the order of the channels that is at most half a grey level; for BGR images through RGB
    statistics up to 20 grey levels.

    Args:
      backbone: backbone parameters; the `kernel` (3, 3, 3, out) of `conv1_1` takes B, G, R.
      color_order: "bgr" or "rgb", channel order of our input.
      mean, std: our normalisation, channels in the order of our input.

    Returns:
      The backbone with a new `conv1_1`.
    """
    first = backbone["conv1_1"]
    kernel = first["kernel"].astype(np.float64)
    keras_mean = np.array(KERAS_MEAN_BGR)
    if color_order == "rgb":
        kernel, keras_mean = kernel[:, :, ::-1], keras_mean[::-1]
    offset = 255.0 * np.asarray(mean) - keras_mean
    bias = first["bias"] + np.einsum("hwio,i->o", kernel, offset)
    kernel = kernel * (255.0 * np.asarray(std))[:, None]
    adapted = {
        "kernel": kernel.astype(first["kernel"].dtype),
        "bias": bias.astype(first["bias"].dtype),
    }
    return {**backbone, "conv1_1": adapted}


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError(
            f"reading {path} needs torch, which is not installed: pip install torch, "
            "or convert the file to .safetensors"
        ) from None
    try:
        # weights_only: plain tensors, never arbitrary pickled objects.
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # A damaged pickle may make anything fail.
        raise UserError(f"{path} is not a state_dict of plain tensors: {reason(error)}") from None

    def is_plain(tensor) -> bool:
        """Whether all numbers are in the file: a view or a sparse tensor may have any shape."""
        return (
            isinstance(tensor, torch.Tensor)
            and tensor.layout == torch.strided
            and tensor.device.type == "cpu"
            and not tensor.is_quantized
            and tensor.nbytes <= tensor.untyped_storage().nbytes()
        )

    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and is_plain(tensor) for key, tensor in state.items()
    ):
        raise UserError(f"{path} is not a state_dict; save model.state_dict() with torch.save")
    return {key: tensor.detach().float().numpy() for key, tensor in state.items()}


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        # Every array lies in the file, so none is larger than that.
        return safetensors.numpy.load_file(path)
    except _SAFETENSORS_DAMAGED as error:
        raise UserError(f"{path} cannot be read as safetensors ({reason(error)})") from None


def _read_keras(path: pathlib.Path, template: Mapping) -> dict:
    """The backbone of a Keras file, whose arrays are laid out as ours.

    Keras has named them in several ways over the years; all of them have the layer's name as one
    of the group names, and the layer holds a 4-d kernel and a 1-d bias.
    """
    with open_arrays(path) as arrays:
        found = {}
        for name, array in arrays.items():
            if name.startswith("optimizer") or _is_classifier(name):
                continue
            layer = _keras_layer(name)
            if layer is None or array.ndim not in (1, 4):
                raise UserError(f"{path} is not Keras' VGG16: it holds {shown(name)} {array.shape}")
            key = f"{layer}/{'kernel' if array.ndim == 4 else 'bias'}"
            if key in found:
                raise UserError(
                    f"{path} is not Keras' VGG16: it holds {shown(name)} and another like it"
                )
            found[key] = array
        entries = [
            Entry("/".join(at[1:]), at, leaf.shape, Layout.AS_IS)
            for at, leaf in traverse_util.flatten_dict(template).items()
        ]
        return read_entries(path, found, entries, template, advice=_ADVICE)["backbone"]


def _is_classifier(name: str) -> bool:
    return re.search(r"(^|/)(fc1|fc2|predictions|dense(_\d+)?)/", name) is not None


def _keras_layer(name: str) -> str | None:
    """Our name of the layer of an array in a Keras file, None if no layer of VGG16."""
    if match := re.search(r"(^|/)block(\d)_conv(\d)/", name):
        layer = f"conv{match[2]}_{match[3]}"
        return layer if layer in VGG16_FEATURES else None
    if match := re.search(r"(^|/)conv2d(?:_(\d{1,3}))?/", name):
        # Keras 3 may name layers by kind and position.
        return dict(enumerate(VGG16_FEATURES)).get(int(match[2] or 0))
    return None
