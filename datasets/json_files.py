"""Reads the JSON files of which sources consist, and names the file when something is wrong."""

import collections
import json
import pathlib
import re
from collections.abc import Callable, Sequence

from fnet_jax.datasets.schema import BACKGROUND, Annotation, Vocabulary
from fnet_jax.errors import UserError

_SHOWN = 120  # Characters of a wrong value in a message.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def load_json(path: pathlib.Path):
    """The content of a JSON file; UserError with its name if it is not JSON."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if _SURROGATE.search(text):
            # Half of an escaped pair is no text: it could be neither stored nor shown.
            json.dumps(content, ensure_ascii=False).encode()
        return content
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); fetch or write it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error


def class_names(path: pathlib.Path, content: object, what: str) -> list[str]:
    """The background and the class names in `content`, which must be a list of different ones."""
    if (
        not isinstance(content, list)
        or not content
        or not all(isinstance(name, str) for name in content)
    ):
        raise UserError(f"{path}: {what} must be a list of class names")
    names = [BACKGROUND, *content]
    repeated = [name for name, count in collections.Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: {what} lists {min(repeated)!r} twice; names must differ")
    return names


def names(path: pathlib.Path) -> list[str]:
    """The background and the class names of a file that is a list of them."""
    return class_names(path, load_json(path), "it")


def listed_vocabulary(
    objects: pathlib.Path, predicates: pathlib.Path, weights: pathlib.Path | None = None
) -> Vocabulary:
    """Class names of two files that list them, with the weights of a third if it is there."""
    object_names, predicate_names = names(objects), names(predicates)
    if weights is None or not weights.is_file():
        return Vocabulary(object_names, predicate_names)
    return Vocabulary(
        object_names,
        predicate_names,
        listed_weights(weights, "object", len(object_names)),
        listed_weights(weights, "predicate", len(predicate_names)),
    )


def parse_file(path: pathlib.Path, parse: Callable[[object], list[Annotation]]) -> list[Annotation]:
    """What `parse` makes of a JSON file; the file is named in what it complains of."""
    content = load_json(path)
    try:
        return parse(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def listed_weights(path: pathlib.Path, key: str, count: int) -> list[float]:
    """`count` weights, the background's first, under a key of a file."""
    content = load_json(path)
    weights = content.get(key) if isinstance(content, dict) else None
    if not isinstance(weights, list) or len(weights) != count or not all(map(_is_weight, weights)):
        raise UserError(
            f"{path}: {key!r} must be a list of {count} positive weights, background first"
        )
    return [float(weight) for weight in weights]


def named_weights(path: pathlib.Path, key: str, names: Sequence[str]) -> list[float]:
    """Weights {name: weight} under a key, over their minimum, with 1 for the background."""
    content = load_json(path)
    weights = content.get(key) if isinstance(content, dict) else None
    missing = [name for name in names[1:] if not isinstance(weights, dict) or name not in weights]
    if missing or not all(_is_weight(weights[name]) for name in names[1:]):
        what = f"{missing[0]!r} is missing" if missing else "one is not"
        raise UserError(f"{path}: {key!r} must give each class a positive weight, but {what}")
    least = min(weights[name] for name in names[1:])
    return [1.0, *(float(weights[name] / least) for name in names[1:])]


def fields(entry: object, **kinds: type) -> list:
    """The named fields of a JSON object, in order, if they have the given types.

    Raises:
      TypeError, KeyError: with the name of the field that is missing or of another type.
    """
    if not isinstance(entry, dict):
        raise TypeError(f"{entry!r} is not an object"[:_SHOWN])
    values = []
    for name, kind in kinds.items():
        value = entry[name]
        # JSON's true is no number, but Python's is.
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"{name!r} is {value!r}"[:_SHOWN])
        values.append(value)
    return values


def four_numbers(value: object) -> tuple[float, ...]:
    """A box as it is written; TypeError if it is none. NaN passes: `schema.check` names it."""
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        raise TypeError(f"{value!r} is no box"[:_SHOWN])
    return tuple(value)


def malformed(image: object, form: str, error: Exception) -> UserError:
    """What to raise for an image whose annotation is not as a format wants it."""
    return UserError(
        f"annotation of image {image!r} is not in {form} "
        f"({type(error).__name__}: {error}); correct the file"
    )


def _is_number(value: object) -> bool:
    # Integers of JSON know no limit, float32 does.
    return isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) > 1e9


def _is_weight(value: object) -> bool:
    # Less than this, and the ratio of two could be infinite.
    return _is_number(value) and value > 1e-9
