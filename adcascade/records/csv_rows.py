"""Records of CSV text, of which a bad one costs no other. Knows no columns' meaning.

Python's strict parser is used wherever there is a quote, and not Arrow's, which reads ``"27" monitor"`` as another
value without a word, and gives up the whole file at a quote that nothing closes. Blocks of lines without any are split
by Arrow at their commas, which leaves nothing to understand in two ways.
"""

import csv
from collections import deque
from collections.abc import Iterator
from io import StringIO, TextIOBase

import pyarrow as pa
import pyarrow.csv as pa_csv

from adcascade.records.errors import InputError

MAX_LINE_CHARS = 16 * 1024 * 1024
# What a quoted value with line ends may span; it bounds what is read again after a quote that nothing closes.
_MAX_RECORD_LINES = 32_768
_MAX_RECORD_CHARS = 1024 * 1024
# A line that some spreadsheets write before the header.
_SPREADSHEET_HINTS = ("sep=,", '"sep=,"', "sep=;", '"sep=;"')
# Characters of the first block of lines that is read at once, and of the largest.
_FIRST_BLOCK, _LARGEST_BLOCK = 1 << 14, 1 << 22
_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}


class RecordError(ValueError):
    """A record that cannot be read: the message says where and why."""


class CsvRecords:
    """Reads records one after the other.

    A record whose quotes do not match, or that has another number of values than the header, is bad; the next one
    begins on the next line. Blank lines are no records.

    Args:
        lines: Text that keeps line ends as they are (``newline=""``).
        file: What messages call the file.
    """

    def __init__(self, lines: TextIOBase, file: str) -> None:
        csv.field_size_limit(MAX_LINE_CHARS)
        self._lines = lines
        self._given_back: deque[str] = deque()
        self._line = 0
        self._width = 0
        self._block = _FIRST_BLOCK
        self.header = self._read_header(file)
        self._width = len(self.header)

    def __iter__(self) -> Iterator[list[str] | RecordError]:
        """The records after the header that are left."""
        while line := self._next_line():
            if line.isspace():
                continue
            try:
                yield self._record(line)
            except RecordError as bad:
                yield bad

    def plain_block(self) -> pa.Table | None:
        """The next records, all of them good, as columns of strings.

        None where there are no more, or some of them hold a quote, a line end within a line, bytes that are no UTF-8,
        or another number of values than the header: then the next records are to be taken one by one.
        """
        if self._given_back:
            return None
        text = self._lines.read(self._block)
        begun = len(text) - max(text.rfind("\n"), text.rfind("\r")) - 1  # characters of the last line
        text += self._lines.readline(MAX_LINE_CHARS - begun)
        self._block = min(2 * self._block, _LARGEST_BLOCK)
        table = self._split(text)
        if table is None:
            lines = StringIO(text, newline="")
            self._given_back.extend(iter(lambda: lines.readline(MAX_LINE_CHARS), ""))
        else:
            self._line += text.count("\n")
        return table

    def _split(self, text: str) -> pa.Table | None:
        is_odd = '"' in text or "\0" in text or text.count("\r") != text.count("\r\n") or text[:1] == "\ufeff"
        if is_odd or not 0 < len(text) < MAX_LINE_CHARS or self._width < 2 or len(set(self.header)) < self._width:
            return None
        try:
            return pa_csv.read_csv(
                pa.BufferReader(text.encode()),
                pa_csv.ReadOptions(column_names=self.header, use_threads=False),
                pa_csv.ParseOptions(quote_char=False),
                pa_csv.ConvertOptions(
                    column_types=dict.fromkeys(self.header, pa.string()), null_values=[], strings_can_be_null=False
                ),
            )
        except (pa.ArrowInvalid, UnicodeEncodeError):
            return None

    def _record(self, line: str) -> list[str]:
        first = self._line
        if len(line) >= MAX_LINE_CHARS:
            while (rest := self._next_line()) and len(rest) >= MAX_LINE_CHARS:
                pass
            raise RecordError(f"line {first} has more than {MAX_LINE_CHARS:,} characters")
        if '"' not in line:
            (values,) = csv.reader([line])
            return self._checked(values, first)
        taken = [line]
        try:
            return self._checked(next(csv.reader(self._more(taken), strict=True)), first)
        except csv.Error as error:
            self._give_back(taken[1:])
            raise RecordError(f"line {first} has a quote that does not match ({error})") from None
        except RecordError:
            self._give_back(taken[1:])
            raise

    def _checked(self, values: list[str], line: int) -> list[str]:
        if self._width and len(values) != self._width:
            raise RecordError(f"expected {self._width} columns, line {line} has {len(values)}")
        return values

    def _more(self, taken: list[str]) -> Iterator[str]:
        yield taken[0]
        chars = len(taken[0])
        while len(taken) < _MAX_RECORD_LINES and chars < _MAX_RECORD_CHARS and (line := self._next_line()):
            taken.append(line)
            chars += len(line)
            yield line

    def _next_line(self) -> str:
        self._line += 1
        return self._given_back.popleft() if self._given_back else self._lines.readline(MAX_LINE_CHARS)

    def _give_back(self, lines: list[str]) -> None:
        self._given_back.extendleft(reversed(lines))
        self._line -= len(lines)

    def _read_header(self, file: str) -> list[str]:
        line = self._next_line()
        while line and (line.isspace() or line.strip().lower() in _SPREADSHEET_HINTS):
            line = self._next_line()
        if not line:
            raise InputError(f"{file} is empty: its first line must name the columns")
        try:
            names = [name.strip() for name in self._record(line)]
        except RecordError as error:
            raise InputError(f"cannot read {file}, whose first line must name the columns: {error}") from None
        mark = max(_DELIMITERS, key=line.count)
        if len(names) <= line.count(mark):
            raise InputError(
                f"{file} has the columns {', '.join(map(repr, names))[:300]}: it seems to separate its values by "
                f"{_DELIMITERS[mark]}; write it with commas"
            )
        twice = sorted({name for name in names if name and names.count(name) > 1})
        if twice:
            raise InputError(f"{file} names the column {twice[0]!r} twice; give each column a name of its own")
        return names
