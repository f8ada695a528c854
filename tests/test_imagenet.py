"""ImageNet VGG16 files of three kinds, in the layouts found in the wild, with random numbers."""

import builtins
import pickle

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from fnet_jax import imagenet
from fnet_jax.errors import UserError
from fnet_jax.weights import VGG16_FEATURES

WIDTHS = (4, 5, 3, 6, 5, 4, 7, 3, 5, 6, 4, 5, 7)
RGB_MEAN, RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def backbone():
    rng = np.random.default_rng(0)
    params, channels = {}, 3
    for name, width in zip(VGG16_FEATURES, WIDTHS, strict=True):
        params[name] = {
            "kernel": rng.standard_normal((3, 3, channels, width), np.float32),
            "bias": rng.standard_normal(width, np.float32),
        }
        channels = width
    return params


@pytest.fixture(scope="module")
def template(backbone):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), backbone)


def torchvision_state(backbone):
    state = {}
    for name, index in VGG16_FEATURES.items():
        state[f"features.{index}.weight"] = np.ascontiguousarray(
            backbone[name]["kernel"].transpose(3, 2, 0, 1)
        )
        state[f"features.{index}.bias"] = backbone[name]["bias"]
    state["classifier.0.weight"] = np.ones((2, 3), np.float32)
    return state


def write_keras(path, backbone, layout):
    """`layout(block, index, position)` -> dataset names of kernel and bias."""
    with h5py.File(path, "w") as file:
        for position, (name, layer) in enumerate(backbone.items()):
            kernel, bias = layout(*name.removeprefix("conv").split("_"), position)
            file[kernel], file[bias] = layer["kernel"], layer["bias"]


def numbered(base, position):
    return f"{base}_{position}" if position else base


KERAS_LAYOUTS = {
    "2016": lambda b, i, _: (
        f"block{b}_conv{i}/block{b}_conv{i}_W_1:0",
        f"block{b}_conv{i}/block{b}_conv{i}_b_1:0",
    ),
    "keras2": lambda b, i, _: (
        f"block{b}_conv{i}/block{b}_conv{i}/kernel:0",
        f"block{b}_conv{i}/block{b}_conv{i}/bias:0",
    ),
    "keras2 whole model": lambda b, i, _: (
        f"model_weights/block{b}_conv{i}/block{b}_conv{i}/kernel:0",
        f"model_weights/block{b}_conv{i}/block{b}_conv{i}/bias:0",
    ),
    "keras3 by name": lambda b, i, _: (
        f"layers/block{b}_conv{i}/vars/0",
        f"layers/block{b}_conv{i}/vars/1",
    ),
    "keras3 by position": lambda b, i, position: (
        f"layers/{numbered('conv2d', position)}/vars/0",
        f"layers/{numbered('conv2d', position)}/vars/1",
    ),
}


def assert_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("color_order", ["bgr", "rgb"])
def test_safetensors_are_taken_as_they_are(backbone, template, tmp_path, color_order):
    path = tmp_path / "vgg16.safetensors"
    safetensors.numpy.save_file(torchvision_state(backbone), path)
    assert_equal(imagenet.load_vgg16(path, color_order, template), backbone)


def test_torch_file(backbone, template, tmp_path):
    torch = pytest.importorskip("torch")
    state = {key: torch.from_numpy(array) for key, array in torchvision_state(backbone).items()}
    for legacy in (False, True):  # torchvision's oldest file is not a zip
        path = tmp_path / f"vgg16-{legacy}.pth"
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
        assert_equal(imagenet.load_vgg16(path, "bgr", template), backbone)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="is not a state_dict"):
        imagenet.load_vgg16(path, "bgr", template)


class Malicious:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def test_torch_file_is_never_unpickled(template, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "evil.pth"
    for write in (lambda: torch.save(Malicious(), path), lambda: path.write_bytes(b"\x00")):
        write()
        with pytest.raises(UserError, match=r"evil\.pth is not a state_dict of plain tensors"):
            imagenet.load_vgg16(path, "bgr", template)


def test_missing_torch_is_one_clear_line(template, tmp_path, monkeypatch):
    real_import = builtins.__import__

    def without_torch(name, *args, **kwargs):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(UserError, match="pip install torch, or convert") as caught:
        imagenet.load_vgg16(path, "bgr", template)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", KERAS_LAYOUTS)
def test_keras_layouts(backbone, template, tmp_path, layout):
    path = tmp_path / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    write_keras(path, backbone, KERAS_LAYOUTS[layout])
    with h5py.File(path, "a") as file:  # no part of the convolutions
        file["fc1/fc1/kernel:0"] = np.ones((7, 2), np.float32)
        file["optimizer_weights/SGD/block1_conv1/kernel/momentum:0"] = np.ones(4, np.float32)
    loaded = imagenet.load_vgg16(path, "rgb", template)
    for name in list(VGG16_FEATURES)[1:]:
        assert_equal(loaded[name], backbone[name])
    assert_equal(loaded, imagenet.fold_keras_input(backbone, "rgb"))


def convolve(image, layer):
    """A zero-padded 3x3 correlation written out, (H, W, 3) float64 -> (H, W, out)."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))
    kernel = layer["kernel"].astype(np.float64)
    return np.einsum("hwcyx,yxco->hwo", windows, kernel) + layer["bias"]


@pytest.mark.parametrize(
    ("color_order", "mean", "std"),
    [
        ("rgb", RGB_MEAN, RGB_STD),
        ("bgr", RGB_MEAN[::-1], RGB_STD[::-1]),  # statistics in the order of the channels
        ("bgr", RGB_MEAN, RGB_STD),  # the published models' quirk
    ],
)
def test_keras_convention_is_folded(backbone, color_order, mean, std):
    pixels = np.random.default_rng(1).integers(0, 256, (7, 9, 3)).astype(np.float64)  # B, G, R
    expected = convolve(pixels - (103.939, 116.779, 123.68), backbone["conv1_1"])

    folded = imagenet.fold_keras_input(backbone, color_order, mean=mean, std=std)["conv1_1"]
    ours = pixels if color_order == "bgr" else pixels[:, :, ::-1]
    actual = convolve((ours / 255 - mean) / std, folded)

    largest = np.abs(expected).max()
    np.testing.assert_allclose(actual[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1e-6 * largest)

    # On the border the taps outside the image see the constant that the bias took over.
    offset = 255 * np.array(mean) - (
        (103.939, 116.779, 123.68) if color_order == "bgr" else (123.68, 116.779, 103.939)
    )
    kernel = backbone["conv1_1"]["kernel"].astype(np.float64)
    kernel = kernel if color_order == "bgr" else kernel[:, :, ::-1]
    outside = np.pad(np.zeros((7, 9, 3)), ((1, 1), (1, 1), (0, 0)), constant_values=1.0) * offset
    windows = np.lib.stride_tricks.sliding_window_view(outside, (3, 3), axis=(0, 1))
    difference = np.einsum("hwcyx,yxco->hwo", windows, kernel)
    np.testing.assert_allclose(actual - expected, difference, atol=1e-6 * largest)
    in_order = mean == RGB_MEAN and color_order == "bgr"
    assert np.abs(offset).max() < (21 if in_order else 0.51)


def test_problems_are_listed(backbone, template, tmp_path):
    state = torchvision_state(backbone)
    del state["features.7.bias"]
    state["features.1.running_mean"] = np.zeros(4, np.float32)
    state["features.0.weight"] = np.zeros((4, 1, 3, 3), np.float32)
    path = tmp_path / "vgg.safetensors"
    safetensors.numpy.save_file(state, path)
    with pytest.raises(UserError) as caught:
        imagenet.load_vgg16(path, "bgr", template)
    for part in (
        "missing features.7.bias (6)",
        "unknown features.1.running_mean (4)",
        "features.0.weight is (4, 1, 3, 3), expected (4, 3, 3, 3)",
    ):
        assert part in str(caught.value)


def test_foreign_files(template, tmp_path):
    with pytest.raises(UserError, match="no file"):
        imagenet.load_vgg16(tmp_path / "absent.pth", "bgr", template)
    for name, message in (
        ("vgg.npz", "unknown kind"),
        ("vgg.h5", "cannot be read as HDF5"),
        ("vgg.safetensors", "cannot be read as safetensors"),
    ):
        path = tmp_path / name
        path.write_text("{}")
        with pytest.raises(UserError, match=message):
            imagenet.load_vgg16(path, "bgr", template)
    with pytest.raises(UserError, match="color_order is 'gbr'"):
        imagenet.load_vgg16(path, "gbr", template)
    resnet = tmp_path / "resnet.h5"
    with h5py.File(resnet, "w") as file:
        file["conv1_bn/conv1_bn/gamma:0"] = np.zeros(64, np.float32)
    with pytest.raises(UserError, match="is not Keras' VGG16: it holds conv1_bn"):
        imagenet.load_vgg16(resnet, "bgr", template)
