"""Photos and videos as people have them: any format and orientation, or refused in one sentence."""

import glob
import io
import os
import pathlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from fnet_jax.errors import UserError

# FFmpeg would comment on damaged videos in its own words.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

# 0.5 GB of memory once decoded. A few kilobytes of PNG can claim far more.
MAX_PIXELS = 150_000_000
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")


class Source(NamedTuple):
    """A file to read, and its name in the results: its path below the folder that was given."""

    path: pathlib.Path
    name: str


def find(
    inputs: Iterable[str | os.PathLike], leave_out: pathlib.Path | None = None
) -> list[Source]:
    """The files that paths, folders (with all below them) and glob patterns stand for, each once.

    Args:
      inputs: as given by the user. Hidden files and folders inside of folders are passed over.
      leave_out: a folder to skip: results of an earlier run among the photos.

    Raises:
      UserError: a path does not exist, a pattern matches nothing, or there is no file at all.
    """
    found: dict[pathlib.Path, str] = {}
    for given in map(os.fspath, inputs):
        paths = [given] if os.path.exists(given) else sorted(glob.glob(given, recursive=True))
        if not paths:
            raise UserError(f"--input: there is nothing at {given}")
        for path in map(pathlib.Path, paths):
            for file in _files_below(path) if path.is_dir() else [path]:
                name = file.relative_to(path).as_posix() if path.is_dir() else file.name
                if leave_out is None or not file.resolve().is_relative_to(leave_out.resolve()):
                    found.setdefault(file.resolve(), name)
    if not found:
        raise UserError(f"--input: no file in {', '.join(map(os.fspath, inputs))}")
    return [Source(path, name) for path, name in zip(found, _distinct(found.values()), strict=True)]


def _files_below(folder: pathlib.Path) -> list[pathlib.Path]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted(
        file
        for file in files
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def _distinct(names: Iterable[str]) -> list[str]:
    """Names in which a repeated one (files of different folders) has a number in front."""
    taken: set[str] = set()
    distinct = []
    for name in names:
        candidate, number = name, 1
        while candidate in taken:
            number += 1
            candidate = f"{number}/{name}"
        taken.add(candidate)
        distinct.append(candidate)
    return distinct


def is_video(path: str | os.PathLike) -> bool:
    """Whether a file is one by its name."""
    return pathlib.PurePath(path).suffix.lower() in VIDEO_SUFFIXES


def read_image(source: str | os.PathLike | bytes) -> np.ndarray:
    """An image file as people see it: turned as its EXIF data say, transparency over white.

    Grey, palette, CMYK and 16-bit images become 8-bit RGB; an animation is its first picture.

    Args:
      source: a path, or the contents of a file.

    Returns: (h, w, 3) uint8 RGB.

    Raises:
      UserError: without the file's name: not readable, no image, damaged, or larger than
        `MAX_PIXELS`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's limit on sizes is replaced by ours.
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UserError(
                        f"it has {image.width} x {image.height} pixels; at most "
                        f"{MAX_PIXELS // 1_000_000} million are accepted"
                    )
                return np.ascontiguousarray(_as_rgb(image))
        except Image.UnidentifiedImageError as error:
            raise UserError("it is no image, or of an unknown format") from error
        except Image.DecompressionBombError as error:
            raise UserError(
                f"it claims more than {MAX_PIXELS // 1_000_000} million pixels"
            ) from error
        except FileNotFoundError as error:
            raise UserError("there is no such file") from error
        except PermissionError as error:
            raise UserError("it may not be read") from error
        # What Pillow's decoders raise for damaged files is as varied as the formats.
        except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError) as error:
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise UserError(f"it is damaged ({reason})") from error


def _as_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        raise UserError("its pixels are floating-point numbers without a defined white")
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BITS:  # Pillow would cut values off at 255.
        grey = np.asarray(image).astype(np.int64)
        if grey.max(initial=0) > 255:
            grey >>= 8
        return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def read_frames(path: str | os.PathLike, every: int = 1) -> Iterator[tuple[int, np.ndarray]]:
    """(number, (h, w, 3) uint8 RGB) of every so many frames of a video, from frame 0 on.

    Raises:
      UserError: without the file's name: no frame can be decoded, or `every` is not positive.
    """
    if every < 1:
        raise UserError(f"--every is {every}; it must be at least 1")
    video = cv2.VideoCapture(os.fspath(path))
    try:
        number = 0
        while video.grab():
            if number % every == 0:
                read, frame = video.retrieve()
                if not read:
                    break
                yield number, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            number += 1
        if not number:
            raise UserError("it is no video that can be decoded")
    finally:
        video.release()


def frame_count(paths: Sequence[str | os.PathLike], every: int) -> int | None:
    """How many images these files hold, frames counted; None if a video does not say."""
    total = 0
    for path in paths:
        if not is_video(path):
            total += 1
            continue
        video = cv2.VideoCapture(os.fspath(path))
        frames = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        video.release()
        if frames <= 0:
            return None
        total += -(-frames // every)
    return total
