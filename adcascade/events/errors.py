"""What can go wrong with an event store."""


class StoreError(Exception):
    """The store cannot be opened, read or written; the message says what to do."""
