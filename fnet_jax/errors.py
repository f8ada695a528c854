"""The one exception that means "you can mend this": shown as a single line, without a traceback."""


class UserError(Exception):
    """A mistake in a flag, a config field or a file, with the mend in its message."""
