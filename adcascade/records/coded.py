"""A column of texts as numbers: each distinct text once, and for each row which of them it has. Knows no logs."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array

from adcascade.records.packed import blocks, index_type, looked_up, type_for

Codes = npt.NDArray[np.signedinteger[Any]]
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.integer[Any]] | Mask | slice

# Code of a row without a value.
NO_VALUE = -1
_TEXT = pa.large_string()
_HASHED_ROWS = 1 << 18
# Names that are texts of Python at once.
_NAMES = 1 << 18
# A growing column looks for equal names in its parts when there are so many bytes of names, or parts, that it has not
# looked through.
_WAITING_BYTES, _WAITING_PARTS = 64 * 2**20, 512


@dataclass(frozen=True, eq=False)
class CodedColumn:
    """Texts of rows, dictionary-coded.

    It reads like an array of texts: ``column[3]`` is a text, ``column[rows]`` a column, and ``column == "phone"`` says
    of each row whether it has this text.

    Attributes:
        codes: for each row the place of its text in `names`, `NO_VALUE` where there is none; int32 [rows], or of fewer
            bits that also hold how many names there are.
        names: texts, each once; some may be of no row.
        nothing: what is read where there is no value.
        in_order: whether `names` are in the order of texts, so that codes compare as texts do.
    """

    codes: Codes
    names: pa.LargeStringArray
    nothing: str | None = None
    in_order: bool = False

    @classmethod
    def of(cls, values: Iterable[str | None], nothing: str | None = None) -> "CodedColumn":
        """The column of such texts; None and `nothing` are no value."""
        texts = [None if value == nothing else value for value in values]
        return cls.of_arrow(pa.array(texts, _TEXT), nothing)

    @classmethod
    def of_arrow(cls, texts: pa.Array, nothing: str | None = None) -> "CodedColumn":
        """The column of an Arrow array of strings; nulls are no value."""
        coded = texts.dictionary_encode()
        return cls(codes_of(coded.indices), coded.dictionary.cast(_TEXT), nothing)

    def __len__(self) -> int:
        return len(self.codes)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tolist())

    @overload
    def __getitem__(self, rows: int | np.integer[Any]) -> Any: ...

    @overload
    def __getitem__(self, rows: Rows) -> "CodedColumn": ...

    def __getitem__(self, rows: Any) -> Any:
        codes = self.codes[rows]
        if isinstance(codes, np.ndarray):
            return replace(self, codes=codes)
        return self.nothing if codes == NO_VALUE else self.names[int(codes)].as_py()

    def __eq__(self, other: object) -> Mask:  # type: ignore[override]
        """Which rows have this text (or no value, if it is what is read there); bool [rows]."""
        if not (other is None or isinstance(other, str)):
            return NotImplemented
        if other == self.nothing:
            return ~self.known
        code = self.code_of(other) if other is not None else NO_VALUE
        same: Mask = self.codes == (code if code != NO_VALUE else len(self.names))
        return same

    def __ne__(self, other: object) -> Mask:  # type: ignore[override]
        same = self.__eq__(other)
        return NotImplemented if same is NotImplemented else ~same

    __hash__ = None  # type: ignore[assignment]

    @property
    def known(self) -> Mask:
        """Which rows have a value; bool [rows]."""
        known: Mask = self.codes != NO_VALUE
        return known

    @property
    def distinct(self) -> int:
        """How many different values the rows have."""
        return int(self._is_used.sum())

    def code_of(self, name: str) -> int:
        """The code of a text, `NO_VALUE` if no row can have it; a name is looked up in microseconds."""
        return self._code_of.get(name, NO_VALUE)

    def codes_of_names(self, names: Sequence[str]) -> Integers:
        """The code of each of some texts, `NO_VALUE` where no row can have it, int64 [names]."""
        found = pc.index_in(pa.array(names, _TEXT), value_set=self.names)
        return pc.fill_null(found, NO_VALUE).to_numpy().astype(np.int64)  # type: ignore[no-any-return]

    def tolist(self) -> list[Any]:
        """The text of each row; equal texts are one object."""
        column = self.compact() if len(self.codes) < len(self.names) else self
        texts = np.empty(len(column.names) + 1, object)
        texts[:-1] = column.names.to_pylist()
        texts[NO_VALUE] = self.nothing
        return texts[column.codes].tolist()  # type: ignore[no-any-return]

    def compact(self) -> "CodedColumn":
        """The same rows with the names alone that they have."""
        used = self._is_used
        if used.all():
            return self
        place = np.append(np.cumsum(used) - 1, NO_VALUE).astype(np.int32)  # the last one is that of `NO_VALUE`
        return replace(self, codes=looked_up(place, self.codes), names=self.names.filter(pa.array(used)))

    def packed(self) -> "CodedColumn":
        """The same column, whose codes have as few bits as hold how many names there are."""
        return replace(self, codes=self.codes.astype(_code_type(len(self.names)), copy=False))

    @cached_property
    def sorted(self) -> "CodedColumn":
        """The same rows with the names that they have in order, so that codes compare as texts do."""
        column = self.compact()
        if column.in_order:
            return column
        place = np.append(column.ranks, np.int32(NO_VALUE))
        return replace(column, codes=looked_up(place, column.codes), names=column.sorted_names, in_order=True)

    @property
    def sorted_names(self) -> pa.LargeStringArray:
        """The names that the rows have, in order."""
        names = self.names if self._is_used.all() else self.names.filter(pa.array(self._is_used))
        return names if self.in_order else names.take(pc.sort_indices(names))  # by bytes of UTF-8: by code points

    @cached_property
    def ranks(self) -> npt.NDArray[np.int32]:
        """The place of each of `names` in their order, int32 [names]."""
        ranks = np.arange(len(self.names), dtype=np.int32)
        if not self.in_order:
            ranks[pc.sort_indices(self.names).to_numpy()] = np.arange(len(self.names), dtype=np.int32)
        return ranks

    def of_names(
        self, value: Callable[[str], Any], otherwise: Any, dtype: npt.DTypeLike | None = None
    ) -> npt.NDArray[Any]:
        """What `value` says of the text of each row, asked once a text; `otherwise` where there is none. [rows]"""
        column = self.compact()
        parts = (column.names[start : start + _NAMES] for start in range(0, len(column.names), _NAMES))
        numbers = [np.array([*map(value, part.to_pylist())], dtype) for part in parts]
        values: npt.NDArray[Any] = np.concatenate([*numbers, np.array([otherwise], dtype)])
        return looked_up(values, column.codes)

    def renamed(self, name_of: Callable[[str], str | None]) -> "CodedColumn":
        """The column of what `name_of` makes of each text, asked once a text; None and `nothing` are no value."""
        column = self.compact()
        of_names = CodedColumn.of(map(name_of, column.names.to_pylist()), self.nothing)
        own = np.append(of_names.codes, np.int32(NO_VALUE)).astype(_code_type(len(of_names.names)))
        return replace(of_names, codes=looked_up(own, column.codes))

    def among(self, names: Collection[str]) -> Mask:
        """Which rows have one of these texts; bool [rows]."""
        return np.array([*map(names.__contains__, self.names.to_pylist()), False])[self.codes]

    def hash_into(self, digest: "hashlib._Hash") -> None:
        """Updates a digest with all texts, put together with NUL characters between them."""
        for start in range(0, len(self), _HASHED_ROWS):
            texts = self[start : start + _HASHED_ROWS].tolist()
            digest.update(("\0" * (start > 0) + "\0".join(texts)).encode("utf-8", "surrogatepass"))

    @cached_property
    def _is_used(self) -> Mask:
        used = np.zeros(len(self.names) + 1, bool)
        for some in blocks(len(self.codes)):
            used[self.codes[some]] = True
        return used[:-1]

    @cached_property
    def _code_of(self) -> Mapping[str, int]:
        return {name: code for code, name in enumerate(self.names.to_pylist())}


Number = TypeVar("Number", bound=np.generic)


class OfCodes(Generic[Number]):
    """A number of each row that its code tells, looked up by row: only codes and numbers are held.

    Args:
        codes: of each row, [rows].
        numbers: of each code from 0 on, and, where some rows have none, at the end that of `NO_VALUE`, [codes].
    """

    def __init__(self, codes: Codes, numbers: npt.NDArray[Number]) -> None:
        self._codes, self._numbers = codes, numbers

    def __getitem__(self, rows: npt.NDArray[np.integer[Any]] | slice, /) -> npt.NDArray[Number]:
        """Of some rows, [rows]."""
        return self._numbers[self._codes[rows]]


def _code_type(names: int) -> type[np.signedinteger[Any]]:
    """Of codes of so many names: the number after the last one is one that no row has."""
    return type_for(NO_VALUE, names)


def codes_of(indices: pa.Array) -> npt.NDArray[np.int32]:
    """Indices of an Arrow dictionary as codes: nulls are `NO_VALUE`."""
    return pc.fill_null(indices.cast(pa.int32()), NO_VALUE).to_numpy()  # type: ignore[no-any-return]


def joined(columns: Sequence[CodedColumn]) -> CodedColumn:
    """Rows of one column after the other."""
    every = [pa.array(np.arange(len(part.names), dtype=np.int32)) for part in columns]
    coded = [pa.DictionaryArray.from_arrays(own, part.names) for own, part in zip(every, columns, strict=True)]
    same = pa.chunked_array(coded).unify_dictionaries()
    codes = np.empty(sum(map(len, columns)), _code_type(len(same.chunk(0).dictionary)))
    start = 0
    for part, place in zip(columns, same.chunks, strict=True):
        # The last one is that of `NO_VALUE`.
        of_part = np.append(place.indices.to_numpy(), np.int32(NO_VALUE)).astype(codes.dtype)
        np.take(of_part, part.codes, out=codes[start : start + len(part)], mode="wrap")
        start += len(part)
    return CodedColumn(codes, same.chunk(0).dictionary, columns[0].nothing)


class GrowingColumn:
    """A column to which rows are added; equal texts are held once, but for those of the newest rows."""

    def __init__(self, rows: int, nothing: str | None = None) -> None:
        """Begins with so many rows without a value."""
        self._parts = [CodedColumn(np.full(rows, NO_VALUE, _code_type(0)), pa.array([], _TEXT), nothing)]
        self._waiting = 0

    def append(self, part: CodedColumn) -> None:
        """Adds rows."""
        self._parts.append(part.packed())
        self._waiting += part.names.nbytes
        if self._waiting > max(_WAITING_BYTES, self._parts[0].names.nbytes) or len(self._parts) > _WAITING_PARTS:
            self.column()

    def append_nothing(self, rows: int) -> None:
        """Adds rows without a value."""
        self.append(GrowingColumn(rows)._parts[0])

    def column(self) -> CodedColumn:
        """All rows so far."""
        if len(self._parts) > 1:
            self._parts = [joined(self._parts)]
            self._waiting = 0
            pa.default_memory_pool().release_unused()  # the parts, while other columns still grow
        return self._parts[0]


def grouped(codes: npt.NDArray[np.integer[Any]], groups: int) -> tuple[Integers, Integers]:
    """Rows by their code, those of one code in their order: a counting sort, which takes time in the number of rows.

    Args:
        codes: `NO_VALUE` to `groups` - 1, [rows].

    Returns:
        Row indices, int64 [rows], and where those of each code begin, int64 [groups + 2]: of code c they are
        ``order[start[c + 1] : start[c + 2]]``.
    """
    rows = np.arange(len(codes), dtype=index_type(len(codes)))
    shape = (groups + 1, max(1, len(codes)))
    table = coo_array((np.ones(len(codes), bool), (codes + 1, rows)), shape).tocsr()
    return table.indices.astype(np.int64), table.indptr.astype(np.int64)


def code_ranges(column: CodedColumn, rows: int) -> Iterator[Mask]:
    """Rows with a value in parts of about so many, bool [rows of the column]: those of lower codes first."""
    parts = 1 + len(column) // rows
    for low, high in pairwise(np.linspace(0, len(column.names), parts + 1).astype(int).tolist()):
        yield (column.codes >= low) & (column.codes < high)


def pairs(first: CodedColumn, second: CodedColumn, separator: str) -> CodedColumn:
    """The texts of two columns side by side with a separator between them; no value where either has none."""
    both = first.known & second.known
    number = first.codes.astype(np.int64) * max(1, len(second.names)) + second.codes
    coded = pa.array(number, mask=~both).dictionary_encode()
    left, right = np.divmod(coded.dictionary.to_numpy(), max(1, len(second.names)))
    names = pc.binary_join_element_wise(
        first.names.take(pa.array(left)), second.names.take(pa.array(right)), pa.scalar(separator, _TEXT)
    )
    # Texts that hold the separator may look alike side by side; each stands once.
    distinct = CodedColumn.of_arrow(names, first.nothing)
    return replace(distinct, codes=np.append(distinct.codes, np.int32(NO_VALUE))[codes_of(coded.indices)])


def combinations(columns: Sequence[npt.NDArray[np.integer[Any]]]) -> tuple[Integers, Integers]:
    """Which rows have the same numbers in all columns.

    Returns:
        The first row of each combination, int64 [combinations], and the combination of each row, [rows]: int32, or
        int64 if so many rows need it.
    """
    # Of each block those of its own first: they are few, in most columns, and all rows at once would be much memory.
    kind = np.empty(len(columns[0]), index_type(len(columns[0])))
    candidates, before = [np.empty(0, np.int64)], 0
    for some in blocks(len(kind)):
        first, own = _combinations([column[some] for column in columns])
        kind[some] = own + before
        candidates.append(first + some.start)
        before += len(first)
    if len(candidates) <= 2:
        return candidates[-1], kind
    rows = np.concatenate(candidates)
    first, number = _combinations([column[rows] for column in columns])
    for some in blocks(len(kind)):
        kind[some] = number[kind[some]]
    return rows[first], kind


def _combinations(columns: Sequence[npt.NDArray[np.integer[Any]]]) -> tuple[Integers, Integers]:
    """The same of rows that are looked at all at once, int64 both."""
    found, count = np.zeros(len(columns[0]), np.int64), 1
    for column in columns:
        values = column
        low = int(values.min(initial=0))
        span = int(values.max(initial=0)) - low + 1
        if span > (1 << 62) // max(1, count):  # as many as there are rows, at most
            values, low = codes_of(pa.array(values).dictionary_encode().indices), 0
            span = len(values)
        found *= span  # in place: a log may be most of the memory
        found += values
        found -= low
        coded = pa.array(found).dictionary_encode()
        found[:], count = codes_of(coded.indices), len(coded.dictionary)
    first = np.zeros(count if len(found) else 0, np.int64)
    first[found[::-1]] = np.arange(len(found))[::-1]  # of several rows, the last one written stays
    return first, found
