"""Which parts the benchmark of a GPU has. Knows no models."""

from pathlib import Path

from adcascade.records.datasets.movielens import DatasetFiles
from adcascade.records.errors import InputError
from benchmarks.speed.gpu.embed import EmbedSettings, bench_embed
from benchmarks.speed.gpu.rank import RankOnGpuSettings, bench_rank_on_gpu
from benchmarks.speed.gpu.search import SearchSettings, bench_search
from benchmarks.speed.gpu.train import TrainOnGpuSettings, bench_train_on_gpu
from benchmarks.speed.interleaved_timing import Progress
from benchmarks.speed.models import movielens_files
from benchmarks.speed.results import BenchResult

PARTS = ("search", "embed", "rank", "train")


def gpu_part(part: str, data: Path | None, folder: Path, progress: Progress = lambda *_: None) -> BenchResult:
    """Runs one of `PARTS`.

    Args:
        data: Folder with MovieLens-100k as `export_movielens` writes it; None to export it.
        folder: For what is made on the way.

    Raises:
        InputError: There is no such part, no GPU, or no data.
    """
    if part not in PARTS:
        raise InputError(f"there is no part {part!r}; choose of {', '.join(PARTS)}")
    if part == "search":
        return bench_search(SearchSettings(), progress)
    files = movielens_files(folder) if data is None else _files_in(data)
    if part == "embed":
        return bench_embed(EmbedSettings(), files.ads, progress)
    if part == "rank":
        return bench_rank_on_gpu(RankOnGpuSettings(), files, folder, progress)
    return bench_train_on_gpu(TrainOnGpuSettings(), files, progress)


def _files_in(folder: Path) -> DatasetFiles:
    files = DatasetFiles(*(folder / f"{name}.parquet" for name in ("ads", "clicks", "users")))
    for path in (files.ads, files.clicks, files.users):
        if not path.is_file():
            raise InputError(f"there is no file {path}")
    return files
