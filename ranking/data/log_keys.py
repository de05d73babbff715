"""What the counters of a log's rows are looked up by, made of ads and users when it is asked for. Knows no counters.

There are nearly as many pairs of users with what is shown to them as there are rows: as columns with names, they would
take more memory than the log.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from adcascade.records.ads import Ad
from adcascade.records.coded import NO_VALUE, CodedColumn, Codes, Mask
from adcascade.records.packed import blocks
from ranking.inputs.features import COUNTED, key_column

Rows = npt.NDArray[np.integer[Any]] | Mask | slice


class LogKeys(Mapping[str, CodedColumn]):
    """For each of `ranking.inputs.features.COUNTED`, the id of each row; no value where there is none.

    A column is made anew each time.

    Args:
        ads: those of `ad_ids`, at least, by id.
    """

    def __init__(self, ad_ids: CodedColumn, user_ids: CodedColumn, ads: Mapping[str, Ad]) -> None:
        self._ad_ids, self._user_ids, self._ads = ad_ids, user_ids, ads

    def __getitem__(self, key: str) -> CodedColumn:
        if key not in COUNTED:
            raise KeyError(key)
        return key_column(key, self._ad_ids, self._user_ids, self._ads)

    def __iter__(self) -> Iterator[str]:
        return iter(COUNTED)

    def __len__(self) -> int:
        return len(COUNTED)

    def take(self, rows: Rows) -> "LogKeys":
        """The same of the given rows, in the given order."""
        return LogKeys(self._ad_ids[rows], self._user_ids[rows], self._ads)

    def known_share(self, key: str) -> float:
        """Of how many rows there is an id, 0 to 1."""
        if not key.startswith("user_"):
            return float(self[key].known.mean())
        return float((self._user_ids.known & self[key.removeprefix("user_")].known).mean())

    def grouping(self, key: str) -> Codes:
        """A number of each row, equal where ids are equal (and maybe elsewhere); [rows]."""
        return self._user_ids.codes if key.startswith("user") else self[key].codes

    def parts(self, key: str, most_rows: int) -> tuple[npt.NDArray[np.uint16], int]:
        """The part of each row, [rows], and how many there are: of about so many rows, all rows of an id in one."""
        count = -(-max(1, len(self._ad_ids)) // most_rows)
        grouping = self.grouping(key)
        part = np.empty(len(grouping), np.uint16)
        for some in blocks(len(grouping)):
            # Rows without an id belong together with no others: were they in one part, it could be most of the log.
            rows, of_row = np.arange(some.start, some.stop), grouping[some]
            part[some] = np.where(of_row == NO_VALUE, rows, of_row) % count
        return part, count
