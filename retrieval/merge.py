"""What several candidate sources found, merged into one list. Plain functions; knows no source."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

# Of reciprocal rank fusion (Cormack, Clarke and Büttcher 2009).
_RANK_OFFSET = 60.0


class Merged(NamedTuple):
    """A row of the catalog, and the source that speaks for it most."""

    row: int
    source: str


def merge_sources(found: Mapping[str, Sequence[int]], shares: Mapping[str, float], k: int) -> list[Merged]:
    """At most `k` rows, best first, each once.

    Each source first brings its best, as many as its share of `k`; what is then left goes to the rows with the highest
    fused score: the sum over sources of share / (60 + rank). The same score makes the order.

    Args:
        found: Source to the rows that it found, best first.
        shares: Source to its share of the candidates, 0 to 1.
    """
    if len(found) == 1:
        ((source, rows),) = found.items()
        return [Merged(row, source) for row in list(dict.fromkeys(rows))[:k]]
    # score(row) = sum over sources s that found it of share_s / (60 + rank_s(row)), ranks from 1.
    score: dict[int, float] = {}
    loudest: dict[int, tuple[float, str]] = {}
    for source, rows in found.items():
        for rank, row in enumerate(rows, start=1):
            voice = shares[source] / (_RANK_OFFSET + rank)
            score[row] = score.get(row, 0.0) + voice
            if voice > loudest.get(row, (-1.0, ""))[0]:
                loudest[row] = (voice, source)
    chosen: dict[int, None] = {}
    for source, rows in found.items():
        chosen |= dict.fromkeys(rows[: int(shares[source] * k + 1e-9)])  # 1e-9: 0.29 * 100 is a little less than 29
    ordered = sorted(score, key=lambda row: -score[row])  # stable: equals stay in the order they were found
    for row in ordered:
        if len(chosen) >= k:
            break
        chosen.setdefault(row)
    kept = [row for row in ordered if row in chosen][:k]
    return [Merged(row, loudest[row][1]) for row in kept]
