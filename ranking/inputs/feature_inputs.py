"""What features are made from, and what several of them share. Knows no features and no tensors."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from adcascade.records.clicks import Integers
from adcascade.records.counters import Counts
from ranking.inputs.content import Similarity

Numbers = npt.NDArray[np.float64]

# Of more rows, those of a whole log, nothing is kept: its columns would fill the memory.
_KEPT_ROWS = 4096


@dataclass(frozen=True)
class FeatureInputs:
    """What the features of impressions are made from.

    Attributes:
        counts: past counts of each of `COUNTED`, arrays of shape [rows].
        ctr: clicks per impression that rates shrink to, 0 to 1.
        timestamp_s: when each impression happens, seconds since 1970, NaN where nobody knows, float64 [rows].
        request: number of each row's request, int64 [rows], from 0; None if all are of one.
        shown: how many ads a request shows, float64 [rows]; None if nobody knows.
        similarity: of each row's ad to what its user liked, [rows]; None if nobody knows.
        made: what `once` made of these inputs.
    """

    counts: Mapping[str, Counts]
    ctr: float
    timestamp_s: Numbers
    request: Integers | None = None
    shown: Numbers | None = None
    similarity: Similarity | None = None
    # Not of other inputs: `dataclasses.replace` begins anew.
    made: dict[Hashable, Numbers] = field(default_factory=dict, init=False, repr=False, compare=False)


def once(inputs: FeatureInputs, name: Hashable, make: Callable[[], Numbers]) -> Numbers:
    """What `make` makes of the inputs; of a request's few rows it is made once for all features that need it."""
    if len(inputs.timestamp_s) > _KEPT_ROWS:
        return make()
    found = inputs.made.get(name)
    if found is None:
        found = inputs.made[name] = make()
    return found
