"""How much there is to multiply in a transformer: the floor under every figure of its speed. Knows no clocks."""


def token_layers(hidden: int, count: int) -> float:
    """Floating point operations of the matrix products of so many tokens, each in one BERT layer.

    Queries, keys, values, the output of attention, and a feed-forward part four times as wide: 12 hidden^2
    multiplications and as many additions. Attention itself is left out: with texts of ads it is next to nothing.
    """
    return 24.0 * hidden * hidden * count
