"""A vector index of somebody else, run in an environment of its own and asked over pipes. Needs nothing of AdCascade.

Started as: search.py ENGINE VECTORS COUNT DIMENSION QUERIES. Builds, and writes a line of JSON: {"mib"}.
Then answers each line {"effort": E, "query": I} with {"ms", "rows"}: the 100 nearest by inner product, in the time that
the engine's own call took.
"""

import contextlib
import json
import sys
import tempfile
import time
from typing import Any

import numpy as np

K = 100
LINKS, BUILD_EFFORT = 16, 200


def own_mib() -> float:
    """Memory of this process, without the pages of files that it has mapped."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


class Hnswlib:
    def __init__(self, vectors: Any) -> None:
        import hnswlib

        self.index = hnswlib.Index(space="ip", dim=vectors.shape[1])
        self.index.init_index(len(vectors), M=LINKS, ef_construction=BUILD_EFFORT)
        for start in range(0, len(vectors), 10_000):
            self.index.add_items(np.array(vectors[start : start + 10_000]))

    def search(self, query: Any, effort: int) -> tuple[float, Any]:
        self.index.set_ef(effort)
        started = time.perf_counter()
        rows, _ = self.index.knn_query(query, K, num_threads=1)
        return started, rows[0]


class Usearch:
    def __init__(self, vectors: Any) -> None:
        from usearch.index import Index

        self.index = Index(
            ndim=vectors.shape[1], metric="ip", connectivity=LINKS, expansion_add=BUILD_EFFORT, dtype="f32"
        )
        for start in range(0, len(vectors), 10_000):
            rows = np.arange(start, min(start + 10_000, len(vectors)))
            self.index.add(rows, np.array(vectors[rows]))

    def search(self, query: Any, effort: int) -> tuple[float, Any]:
        self.index.expansion_search = effort
        started = time.perf_counter()
        found = self.index.search(query[0], K)
        return started, found.keys


class Milvus:
    def __init__(self, vectors: Any) -> None:
        from pymilvus import MilvusClient

        self.folder = tempfile.TemporaryDirectory()
        self.client = MilvusClient(f"{self.folder.name}/milvus.db")
        self.client.create_collection("ads", dimension=vectors.shape[1], metric_type="IP", auto_id=False)
        for start in range(0, len(vectors), 2_000):
            rows = range(start, min(start + 2_000, len(vectors)))
            self.client.insert("ads", [{"id": row, "vector": vectors[row].tolist()} for row in rows])

    def search(self, query: Any, effort: int) -> tuple[float, Any]:
        started = time.perf_counter()
        found = self.client.search("ads", data=query.tolist(), limit=K, search_params={"params": {"ef": effort}})
        return started, [hit["id"] for hit in found[0]]


ENGINES: dict[str, Any] = {"hnswlib": Hnswlib, "usearch": Usearch, "milvus-lite": Milvus}


def main() -> None:
    engine, path, count, dimension, queries_path = sys.argv[1:]
    vectors = np.memmap(path, np.float32, "r", shape=(int(count), int(dimension)))
    queries = np.load(queries_path, allow_pickle=False)
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    before = own_mib()
    index = ENGINES[engine](vectors)
    print(json.dumps({"mib": own_mib() - before}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        begun, rows = index.search(queries[asked["query"]][None], asked["effort"])
        milliseconds = 1000 * (time.perf_counter() - begun)
        print(json.dumps({"ms": milliseconds, "rows": [int(row) for row in rows]}), file=answers, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main()
