"""Why a training cannot go on."""


class TrainingError(Exception):
    """A training whose numbers went wrong; the message says what to do."""
