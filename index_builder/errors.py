"""Why an index version cannot be built or used."""


class BuildError(Exception):
    """A build that must not be published, or an index that does not fit its encoder; the message says what to do."""
