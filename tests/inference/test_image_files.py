"""Photos as people have them: formats, orientations, bit depths, and everything that is refused."""

import io
import pathlib
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from fnet_jax.errors import UserError
from fnet_jax.inference import image_files
from fnet_jax.inference.image_files import find, read_frames, read_image

# Red above, left half darker: every turn and flip looks different.
PICTURE = np.zeros((40, 60, 3), np.uint8)
PICTURE[:20, :, 0] = 250
PICTURE[20:, :, 2] = 200
PICTURE[:, :30] //= 2


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_jpeg_has_the_pixels_that_training_sees():
    content = encoded(Image.fromarray(data.astronaut()), "JPEG", quality=90)
    expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(read_image(content), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation):
    stored = {
        1: PICTURE,
        2: PICTURE[:, ::-1],
        3: PICTURE[::-1, ::-1],
        4: PICTURE[::-1],
        5: PICTURE.transpose(1, 0, 2),
        6: np.rot90(PICTURE),
        7: PICTURE[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PICTURE, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    content = encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    np.testing.assert_array_equal(read_image(content), PICTURE)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "PPM"])
def test_lossless_formats(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(
        read_image(encoded(Image.fromarray(PICTURE), kind, **options)), PICTURE
    )


def test_modes():
    grey = PICTURE[..., 0]
    found = read_image(encoded(Image.fromarray(grey), "PNG"))
    np.testing.assert_array_equal(found, np.repeat(grey[..., None], 3, axis=2))
    palette = Image.fromarray(PICTURE).quantize(8)
    np.testing.assert_array_equal(
        read_image(encoded(palette, "GIF")), np.asarray(palette.convert("RGB"))
    )
    deep = grey.astype(np.uint16) * 256 + 77
    for kind in ("PNG", "TIFF"):
        found = read_image(encoded(Image.fromarray(deep), kind))
        np.testing.assert_array_equal(found, np.repeat(grey[..., None], 3, axis=2))
    bits = Image.fromarray(grey > 100)
    assert set(np.unique(read_image(encoded(bits, "PNG")))) == {0, 255}
    cmyk = Image.fromarray(PICTURE).convert("CMYK")
    assert np.abs(read_image(encoded(cmyk, "JPEG", quality=95)).astype(int) - PICTURE).max() < 60


def test_transparency_is_white():
    image = np.dstack([PICTURE, np.full((40, 60), 255, np.uint8)])
    image[:, :10, 3] = 0
    found = read_image(encoded(Image.fromarray(image, "RGBA"), "PNG"))
    assert (found[:, :10] == 255).all()
    np.testing.assert_array_equal(found[:, 10:], PICTURE[:, 10:])


def bomb() -> bytes:
    """A PNG of a few bytes that claims 4 thousand million pixels."""

    def chunk(name, content):
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", 65_000, 65_000, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


JPEG = encoded(Image.fromarray(data.astronaut()), "JPEG")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no image"),
        (b"hello", "no image"),
        (JPEG[: len(JPEG) // 2], "damaged"),
        (encoded(Image.fromarray(PICTURE), "PNG")[:60], "damaged"),
        (bomb(), "million"),
        (encoded(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF"), "floating-point"),
    ],
    ids=["empty", "text", "half a JPEG", "piece of a PNG", "bomb", "floats"],
)
def test_refused_in_one_line(content, words):
    with pytest.raises(UserError, match=words) as error:
        read_image(content)
    assert "\n" not in str(error.value)


def test_limit_of_size(monkeypatch):
    content = encoded(Image.fromarray(PICTURE), "PNG")
    monkeypatch.setattr(image_files, "MAX_PIXELS", 2400)
    read_image(content)
    monkeypatch.setattr(image_files, "MAX_PIXELS", 2399)
    with pytest.raises(UserError, match="60 x 40 pixels"):
        read_image(content)


SAMPLES = [
    JPEG[:4000],
    *(encoded(Image.fromarray(PICTURE), kind) for kind in ("PNG", "GIF", "TIFF")),
]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(SAMPLES), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=6)
)
def test_any_bytes_give_an_image_or_a_sentence(content, changes):
    damaged = bytearray(content)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    try:
        image = read_image(bytes(damaged))
    except UserError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


@pytest.fixture
def tree(tmp_path):
    for name in ("b.png", "a.jpg", "deep/a.jpg", ".hidden", ".git/c.png", "out/pictures/a.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "in"


def test_find_folders_files_and_patterns(tree):
    assert [s.name for s in find([tree], leave_out=tree / "out")] == [
        "a.jpg",
        "b.png",
        "deep/a.jpg",
    ]
    assert [s.name for s in find([tree / "b.png", f"{tree}/*.jpg"])] == ["b.png", "a.jpg"]
    # Each file once; files of one name from several places are told apart.
    both = find([tree / "a.jpg", tree / "a.jpg", tree / "deep" / "a.jpg"])
    assert [s.name for s in both] == ["a.jpg", "2/a.jpg"]
    assert all(isinstance(s.path, pathlib.Path) and s.path.is_file() for s in both)


@pytest.mark.parametrize("given_path", ["nowhere.jpg", "*.xyz"])
def test_nothing_found(tmp_path, given_path):
    with pytest.raises(UserError, match="--input"):
        find([tmp_path / given_path])


def test_empty_folder(tmp_path):
    with pytest.raises(UserError, match="no file in"):
        find([tmp_path])


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(10):
        writer.write(np.full((48, 64, 3), (0, 0, 25 * number), np.uint8))
    writer.release()
    return path


def test_frames(video):
    frames = list(read_frames(video, every=4))
    assert [number for number, _ in frames] == [0, 4, 8]
    for number, frame in frames:
        assert frame.shape == (48, 64, 3)
        assert np.abs(frame.mean(axis=(0, 1)) - (25 * number, 0, 0)).max() < 6
    assert image_files.frame_count([video, "photo.jpg"], 4) == 4


def test_no_video(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"not a film")
    with pytest.raises(UserError, match="no video"):
        list(read_frames(path))
