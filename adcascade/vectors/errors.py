"""Why an index version cannot be built or used."""


class BuildError(Exception):
    """A build that must not be published, or an index that does not fit its encoder; the message says what to do."""


class NotPublished(BuildError):
    """What was made is kept, but worse than what it would stand in for; the message says how to publish it anyway."""

    exit_code = 3
