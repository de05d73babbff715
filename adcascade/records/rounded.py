"""Numbers whose last digits are lost. Knows no fields."""


class RoundedFloat(float):
    """A number of a column with fewer than 64 bits, so large that its last digits are lost."""
