"""A whole users file in memory: ids packed, and what users say of themselves. Knows no logs."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from adcascade.records.errors import InputError
from adcascade.records.users import UserProfile, users_or_errors

# Ids that are texts of Python at once.
_IDS = 1 << 16


@dataclass(frozen=True)
class UsersReport:
    """What reading a users file found: rows read, and of those rejected, where they stand and why."""

    rows: int
    rejected: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """How many users were left out, in a sentence; none if all can be used."""
        if not self.rejected:
            return ()
        return (f"{len(self.rejected):,} of {self.rows:,} users were left out, such as {self.rejected[0]}.",)


class Users(Mapping[str, UserProfile]):
    """Users by id, in the order of their file; of those who say nothing but their id, nothing else is held.

    Args:
        ids: of all users, each once.

    Attributes:
        telling: by id, those who say more.
    """

    def __init__(self, ids: pa.LargeStringArray, telling: Mapping[str, UserProfile]) -> None:
        self._ids, self.telling = ids, telling
        self._order = pc.sort_indices(ids).cast(pa.int64()).to_numpy()  # by bytes of UTF-8: by code points

    def __getitem__(self, user_id: str) -> UserProfile:
        if user_id in self.telling:
            return self.telling[user_id]
        if user_id not in self:
            raise KeyError(user_id)
        return UserProfile(user_id)

    def __contains__(self, user_id: object) -> bool:
        if not isinstance(user_id, str):
            return False
        place = bisect_left(self._order, user_id, key=self._id)
        return place < len(self) and self._id(self._order[place]) == user_id

    def _id(self, place: int) -> str:
        return str(self._ids[place].as_py())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _IDS):
            yield from self._ids[start : start + _IDS].to_pylist()

    def __len__(self) -> int:
        return len(self._ids)

    def among(self, names: pa.LargeStringArray) -> npt.NDArray[np.bool_]:
        """Which of these are ids of users, bool [names]."""
        known: npt.NDArray[np.bool_] = pc.is_in(names, value_set=self._ids).to_numpy(zero_copy_only=False)
        return known


def who_tell(users: Mapping[str, UserProfile]) -> Mapping[str, UserProfile]:
    """Those of some users who say more than their id, or all."""
    return users.telling if isinstance(users, Users) else users


def load_users(path: Path, max_rejected: float = 0.01) -> tuple[Users, UsersReport]:
    """Users by id; see `read_users`. Rows that cannot be used are left out, and so are others of an id seen before.

    Raises:
        InputError: The file cannot be read, or more than `max_rejected` (a share, 0 to 1) of its rows were rejected.
    """
    rows = _UserRows()
    for user in users_or_errors(path):
        rows.add(user)
    users, rejected = rows.by_id()
    if len(rejected) > max_rejected * len(rows):
        raise InputError(
            f"{path}: {len(rejected):,} of {len(rows):,} users cannot be used, more than the {max_rejected:.1%} "
            f"allowed: {'; '.join(rejected[:3])}"
        )
    return users, UsersReport(len(rows), rejected)


class _UserRows:
    """The rows of a users file: ids packed, and what those who say more say."""

    def __init__(self) -> None:
        self._parts: list[pa.Array] = []
        self._ids: list[str | None] = []
        self._telling: dict[int, UserProfile] = {}
        self._rejected: dict[int, str] = {}
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def add(self, user: UserProfile | InputError) -> None:
        """Takes the next row."""
        if isinstance(user, InputError):
            self._rejected[self._rows] = str(user)
            self._ids.append(None)
        else:
            if user != UserProfile(user.user_id):
                self._telling[self._rows] = user
            self._ids.append(user.user_id)
        self._rows += 1
        if len(self._ids) == _IDS:
            self._pack()

    def _pack(self) -> None:
        self._parts.append(pa.array(self._ids, pa.large_string()))
        self._ids = []

    def by_id(self) -> tuple[Users, tuple[str, ...]]:
        """The first row of each id, and why others were rejected, in the order of the file."""
        self._pack()
        coded = pa.chunked_array(self._parts).combine_chunks().dictionary_encode()
        codes = pc.fill_null(coded.indices, -1).to_numpy()
        known = np.flatnonzero(codes >= 0)
        first = np.empty(len(coded.dictionary), np.int64)
        first[codes[known[::-1]]] = known[::-1]  # of several rows, the last one written stays
        for row in known[first[codes[known]] != known].tolist():
            if self._telling.get(row) != self._telling.get(int(first[codes[row]])):
                user_id = coded.dictionary[int(codes[row])].as_py()
                self._rejected[row] = f"user {user_id!r} is there more than once; the first row stands"
        telling = {one.user_id: one for row, one in self._telling.items() if first[codes[row]] == row}
        return Users(coded.dictionary, telling), tuple(self._rejected[row] for row in sorted(self._rejected))
