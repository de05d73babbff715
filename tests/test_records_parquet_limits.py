"""Small Parquet files that unpack to hundreds of megabytes take little memory to read, or to refuse."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adcascade.records.errors import InputError
from adcascade.records.files import read_rows
from adcascade.records.parquet_limits import BATCH_ROWS, bounded_batches, check_density

LONG = "x" * 180_000
ROWS = 4096
IDS = [str(number) for number in range(ROWS)]

BOMBS = {
    "one text in a dictionary": ({"title": [LONG] * ROWS}, {}),
    "bytes in a dictionary": ({"title": pa.array([LONG.encode()] * ROWS)}, {}),
    "lists of one text": ({"keywords": [[LONG]] * ROWS}, {}),
    "lists of objects": ({"history": [[{"type": "click", "text": LONG}]] * ROWS}, {}),
    "maps": ({"attributes": pa.array([[("a", LONG)]] * ROWS, pa.map_(pa.string(), pa.string()))}, {}),
    "names in maps": ({"attributes": pa.array([[(LONG, "a")]] * ROWS, pa.map_(pa.string(), pa.string()))}, {}),
    "lists of one text, most of them empty": ({"keywords": [[LONG] * 1000, *[[]] * (ROWS - 1)]}, {}),
    "many columns": ({f"c{number}": ["y" * 20_000] * ROWS for number in range(9)}, {}),
    "differences to the value before": (
        {"title": [LONG + name for name in IDS]},
        {"use_dictionary": False, "column_encoding": {"title": "DELTA_BYTE_ARRAY"}},
    ),
}


def write(folder: Path, columns, **options) -> Path:
    path = folder / "ads.parquet"
    pq.write_table(pa.table(columns), path, compression="zstd", **options)
    return path


# Reads the first rows of each file, and says how many it got and how much the process has taken until then, in MiB.
READER = """
import resource, sys
from itertools import islice
from pathlib import Path
from adcascade.records.files import read_rows

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before = peak()
for path in sys.argv[1:]:
    print(sum(1 for _ in islice(read_rows(Path(path)), 400)), peak() - before)
"""


def test_small_files_of_long_texts_take_little_memory(tmp_path):
    paths = []
    for kind, (columns, options) in BOMBS.items():
        (tmp_path / kind).mkdir()
        paths.append(write(tmp_path / kind, columns, **options))
        assert paths[-1].stat().st_size < 20_000
    done = subprocess.run([sys.executable, "-c", READER, *map(str, paths)], capture_output=True, text=True, check=True)
    for kind, line in zip(BOMBS, done.stdout.splitlines(), strict=True):
        rows, mib = line.split()
        assert int(rows) == 400
        assert float(mib) < 250, kind  # 700 and more without a bound


def test_a_row_that_is_too_large_by_itself_is_refused(tmp_path):
    lists = [[LONG] * 4000, *[[]] * (ROWS - 1)]
    deep = [[{"text": LONG, "type": "a"}] * 4000, *[[]] * (ROWS - 1)]
    for columns in ({"keywords": lists}, {"history": deep}, {"keywords": [lists[0]]}):
        with pytest.raises(InputError, match=r"a row of (keywords|history)\.list.* would take 720,000,000 bytes"):
            next(read_rows(write(tmp_path, columns)))


def test_a_file_of_more_rows_than_it_can_hold_is_refused(tmp_path):
    path = write(tmp_path, {"title": pa.array(["x"] * 2_000_000).dictionary_encode()})
    assert path.stat().st_size < 20_000
    with pytest.raises(InputError, match=r"2,000,000 rows; that is no file of real rows"):
        next(read_rows(path))


def test_a_file_that_unpacks_to_more_than_it_can_hold_is_refused(tmp_path):
    path = write(tmp_path, {"title": ["x" * 1_000_000] * 100}, use_dictionary=False)
    with pytest.raises(InputError, match=r"unpacks to 100,\d{3},\d{3}; that is no file"):
        next(read_rows(path))


def test_ordinary_files_are_read_as_before_and_in_large_batches(tmp_path):
    titles = [f"title {number} {'of an ad ' * 10}" for number in range(10_000)]
    columns = {
        "title": titles,
        "category": ["shoes", "tea"] * 5000,
        "keywords": [["a", "b"], []] * 5000,
        "clicks": list(range(10_000)),
        "nothing": pa.nulls(10_000, pa.string()),
    }
    path = write(tmp_path, columns, row_group_size=6000)
    assert [batch.num_rows for batch in bounded_batches(path)] == [BATCH_ROWS, 6000 - BATCH_ROWS, 4000]
    rows = [row for _, _, row in read_rows(path)]
    assert [row["title"] for row in rows] == titles
    assert rows[3] == {"title": titles[3], "category": "tea", "keywords": [], "clicks": 3, "nothing": None}


def test_an_empty_file_has_no_rows(tmp_path):
    path = write(tmp_path, {"title": pa.array([], pa.string())})
    assert list(read_rows(path)) == []
    check_density(path, pq.ParquetFile(path).metadata)
