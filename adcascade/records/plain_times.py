"""Arrow columns turned into moments at once, where they plainly are moments between 2000 and now. Knows no logs."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from adcascade.records.coded import Mask, codes_of
from adcascade.records.plain_columns import Convert, converted_values, distinct, is_text
from adcascade.records.times import AHEAD, EARLIEST, Moment, micros_of

Integers = npt.NDArray[np.int64]

_SECOND, _MINUTE, _DAY = 1_000_000, 60_000_000, 86_400_000_000  # microseconds
_UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
# Seconds of 2033 to 2036 read like dates with an hour, 2026013110.
_LIKE_DATES = (2_000_000_000, 2_100_000_000)
_NUMBER = r"^[1-9][0-9]{8,17}$"
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_ZONE = rf"(?:Z|[+-]{_CLOCK})$"
_ISO = rf"^20[0-9]{{2}}-[0-9]{{2}}-[0-9]{{2}}[T ]{_CLOCK}:[0-5][0-9](?:\.[0-9]{{1,6}})?{_ZONE[:-1]}?$"
_UTC_NAMES = ("UTC", "Etc/UTC", "+00:00")


@dataclass
class PlainMoments:
    """Moments of rows.

    Attributes:
        micros: microseconds since 1970; says nothing where `missing`.
        offset: minutes that the clock on the wall was ahead of UTC, 0 where nothing says so.
        has_zone: whether something says so.
        missing: no moment at all.
        good: which rows are good, the missing ones among them.
    """

    micros: Integers
    offset: Integers
    has_zone: Mask
    missing: Mask
    good: Mask

    @classmethod
    def none(cls, rows: int) -> "PlainMoments":
        """Rows of which nothing is known yet, and none is good."""
        zeros, no = np.zeros(rows, np.int64), np.zeros(rows, bool)
        return cls(zeros, zeros.copy(), no, no.copy(), no.copy())

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> "PlainMoments":
        """The given rows."""
        return PlainMoments(
            self.micros[rows], self.offset[rows], self.has_zone[rows], self.missing[rows], self.good[rows]
        )

    def put(self, rows: Integers, others: "PlainMoments") -> None:
        """Writes others in place of the given rows."""
        for name in ("micros", "offset", "has_zone", "missing", "good"):
            getattr(self, name)[rows] = getattr(others, name)


class MomentReader:
    """Reads columns of moments.

    Args:
        convert: what rows go through: makes a `Moment`, None or an InputError of each value.
        now: what no moment may be more than a day later than.
    """

    def __init__(self, convert: Convert, now: datetime) -> None:
        self._convert = convert
        self._earliest, self._latest = micros_of(EARLIEST), micros_of(now + AHEAD)
        self._offsets: dict[tuple[str, int], int] = {}  # by zone and minute

    def __call__(self, column: pa.Array) -> PlainMoments:
        """The moments of a column.

        Raises:
            ArrowException, ValueError, LookupError: It is of a type, or a zone, of which rows alone can be read.
        """
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        kind = column.type
        if is_text(kind):
            coded = distinct(column)
            codes = codes_of(coded.indices)
            found = self._of_texts(coded.dictionary)
            self._read_others(coded.dictionary, found)
            found = self._with_missing(found).take(codes)
        else:
            found = self._of_values(column)
            found.missing |= column.is_null().to_numpy(zero_copy_only=False)
            found.good |= found.missing
            self._read_others(column, found)
        found.good &= found.missing | ((found.micros >= self._earliest) & (found.micros <= self._latest))
        return found

    def _with_missing(self, found: PlainMoments) -> PlainMoments:
        """With one more row, without a moment, which the code of no value stands for."""
        last = PlainMoments.none(1)
        last.missing[:] = last.good[:] = True
        names = ("micros", "offset", "has_zone", "missing", "good")
        return PlainMoments(*(np.concatenate([getattr(found, name), getattr(last, name)]) for name in names))

    def _of_values(self, column: pa.Array) -> PlainMoments:
        kind = column.type
        if pa.types.is_timestamp(kind):
            return self._of_timestamps(pc.fill_null(column.cast(pa.int64()), 0).to_numpy(), kind.unit, kind.tz)
        if pa.types.is_date32(kind):
            days = pc.fill_null(column.cast(pa.int32()), 0).to_numpy().astype(np.int64)
            found = PlainMoments.none(len(days))
            found.micros[:] = days * _DAY
            found.good[:] = True
            return found
        if pa.types.is_integer(kind) and not pa.types.is_uint64(kind):
            return self._of_numbers(pc.fill_null(column, 0).to_numpy(zero_copy_only=False).astype(np.int64))
        if pa.types.is_float64(kind):
            return self._of_floats(pc.fill_null(column, np.nan).to_numpy(zero_copy_only=False))
        return PlainMoments.none(len(column))

    def _of_timestamps(self, values: Integers, unit: str, zone: str | None) -> PlainMoments:
        found = PlainMoments.none(len(values))
        found.micros[:], found.good[:] = self._micros(values, _UNITS[unit], np.floor_divide)
        if zone is not None:
            found.has_zone[:] = found.good
            if zone not in _UTC_NAMES:
                found.offset[found.good] = self._offsets_at(zone, found.micros[found.good])
        return found

    def _micros(self, values: Integers, unit: int, divided: Any) -> tuple[Integers, Mask]:
        """Moments from numbers of so many a second, and which are good."""
        good = (values >= self._earliest * unit // _SECOND) & (values <= self._latest * unit // _SECOND)
        inside = np.where(good, values, 0)
        return (inside * (_SECOND // unit) if unit <= _SECOND else divided(inside, unit // _SECOND)), good

    def _offsets_at(self, zone: str, micros: Integers) -> Integers:
        """Minutes ahead of UTC at some moments; clocks are changed on whole minutes."""
        minutes, place = np.unique(micros // _MINUTE, return_inverse=True)
        new = [minute for minute in minutes.tolist() if (zone, minute) not in self._offsets]
        for minute, clock in zip(new, pa.array([_MINUTE * one for one in new], pa.timestamp("us", zone)), strict=True):
            self._offsets[zone, minute] = round(clock.as_py().utcoffset().total_seconds() / 60)
        return np.array([self._offsets[zone, minute] for minute in minutes.tolist()], np.int64)[place]

    def _of_numbers(self, values: Integers) -> PlainMoments:
        found = PlainMoments.none(len(values))
        for unit in _UNITS.values():
            micros, good = self._micros(values, unit, _half_even)
            if unit == 1:
                good &= (values < _LIKE_DATES[0]) | (values >= _LIKE_DATES[1])
            found.micros[good] = micros[good]
            found.good |= good
        found.has_zone[:] = found.good
        return found

    def _of_floats(self, values: npt.NDArray[np.float64]) -> PlainMoments:
        """Numbers of any unit if they are whole, else of seconds."""
        whole = np.floor(values)
        inside = np.abs(whole) < 2**62
        found = self._of_numbers(np.where(inside, whole, 0).astype(np.int64))
        # Of a second in these years a float has 22 bits behind the point: a millionth of it times 10^6 is exact.
        part = np.where(inside, values - whole, 0.0)
        found.good &= (part == 0) | (whole < _LIKE_DATES[0])
        found.micros += np.rint(part * _SECOND).astype(np.int64)
        found.missing[:] = np.isnan(values)
        return found

    def _of_texts(self, texts: pa.Array) -> PlainMoments:
        found = PlainMoments.none(len(texts))
        plain = pc.if_else(pc.string_is_ascii(texts), texts, pa.scalar("", pa.large_string()))
        number = np.flatnonzero(pc.match_substring_regex(plain, _NUMBER).to_numpy(zero_copy_only=False))
        if len(number):
            found.put(number, self._of_numbers(plain.take(pa.array(number)).cast(pa.int64()).to_numpy()))
        clock = np.flatnonzero(pc.match_substring_regex(plain, _ISO).to_numpy(zero_copy_only=False))
        if len(clock):
            found.put(clock, self._of_clocks(plain.take(pa.array(clock))))
        return found

    def _of_clocks(self, texts: pa.Array) -> PlainMoments:
        found = PlainMoments.none(len(texts))
        local = pc.replace_substring_regex(texts, _ZONE, "")
        try:
            micros = local.cast(pa.timestamp("us")).cast(pa.int64()).to_numpy()
        except pa.ArrowInvalid:  # a day that no month has
            return found
        zones = distinct(pc.utf8_slice_codeunits(texts, -6))
        minutes = np.array([_minutes(zone) for zone in zones.dictionary.to_pylist()], np.float64)[
            codes_of(zones.indices)
        ]
        zoned = ~np.isnan(minutes)
        found.offset[zoned] = minutes[zoned].astype(np.int64)
        found.micros[:] = micros - found.offset * _MINUTE
        found.has_zone[:] = zoned
        found.good[:] = True
        return found

    def _read_others(self, column: pa.Array, found: PlainMoments) -> None:
        """Reads what is not good so far value by value."""
        rows = np.flatnonzero(~found.good)
        if not len(rows):
            return
        moments, codes = converted_values(column.take(pa.array(rows)), self._convert)
        found.put(rows, _of_moments(moments).take(codes))


def _of_moments(moments: Iterable[Any]) -> PlainMoments:
    given = list(moments)
    found = PlainMoments.none(len(given))
    for place, moment in enumerate(given):
        found.missing[place] = moment is None
        found.good[place] = moment is None or isinstance(moment, Moment)
        if isinstance(moment, Moment):
            found.micros[place] = micros_of(moment.time)
            found.offset[place] = moment.offset or 0
            found.has_zone[place] = moment.offset is not None
    return found


def _minutes(end: str) -> float:
    """Minutes ahead of UTC that the last six characters of a time tell; NaN if it tells none."""
    if end.endswith("Z"):
        return 0
    if end[0] not in "+-" or end[3] != ":":
        return np.nan
    minutes = 60 * int(end[1:3]) + int(end[4:])
    return -minutes if end[0] == "-" else minutes


def _half_even(values: Integers, by: int) -> Integers:
    """Quotients rounded to the nearest whole number, halves to the even one."""
    quotient, rest = np.divmod(values, by)
    rounded: Integers = quotient + ((2 * rest > by) | ((2 * rest == by) & (quotient % 2 == 1)))
    return rounded
