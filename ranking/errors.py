"""Why a model cannot be made or used."""


class ModelError(Exception):
    """A model directory or version that the ranker cannot run; the message says what to do."""
