"""Going through JSON values, for tests that damage them."""


def places(content):
    """All (container, key) pairs of a JSON value."""
    if not isinstance(content, dict | list):
        return []
    keys = list(content) if isinstance(content, dict) else range(len(content))
    inner = [place for key in keys for place in places(content[key])]
    return [(content, key) for key in keys] + inner
