"""The one exception that means "you can mend this": shown as a single line, without a traceback."""

from collections.abc import Sequence

_MAX_LISTED = 12


class UserError(Exception):
    """A mistake in a flag, a config field or a file, with the mend in its message."""


def reason(error: BaseException) -> str:
    """What another library says went wrong, as a part of a message: short, on one line."""
    return shown(" ".join(str(error).split()) or type(error).__name__, 200)


def shown(text: str, most: int = 80) -> str:
    """A text out of a file as a part of a message: short, without characters that do not print."""
    text = text if len(text) <= most else f"{text[:most]}..."
    return text if text.isprintable() else ascii(text)


def listed(problems: Sequence[str]) -> str:
    """The first of many problems, and how many more there are."""
    more = len(problems) - _MAX_LISTED
    return "; ".join(problems[:_MAX_LISTED]) + (f"; and {more} more" if more > 0 else "")
