"""Input that cannot be used. The message names the file or field and says what to do."""


class InputError(ValueError):
    """What the owner or a caller brought is wrong."""
