"""Programs of others, each in the environment that `make bench-peers` made for it, as child processes."""

import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

FOLDER = Path(".peers")
_START_SECONDS, _RERANK_SECONDS = 120.0, 120.0
_SCRIPTS = Path(__file__).parent.parent / "peers"


class PeerMissing(Exception):  # noqa: N818 (a state of the machine, which is reported)
    """A peer that cannot be run, and why."""


def peer_python(name: str) -> Path:
    """The interpreter of a peer's environment. Raises PeerMissing if it was not installed."""
    if not (FOLDER / name / ".installed").exists():
        raise PeerMissing(f"not in {FOLDER.absolute()}: make bench-peers installs it at the root of the repository")
    return FOLDER / name / "bin" / "python"


def _installed_version(environment: str, package: str) -> str:
    """Which release of a package an environment holds."""
    (site,) = (FOLDER / environment / "lib").glob("python*/site-packages")
    return next(iter(Distribution.discover(name=package, path=[str(site)]))).version


@dataclass(frozen=True)
class SearchPeer:
    """A vector index in a process of its own.

    Attributes:
        mib: memory that it took to build, in MiB.
    """

    name: str
    version: str
    process: "subprocess.Popen[str]"
    mib: float

    def search(self, query: int, effort: int) -> tuple[float, list[int]]:
        """Milliseconds of its own call, and the rows that it found. Raises PeerMissing if it has ended."""
        answer = _ask(self.process, {"query": query, "effort": effort})
        return float(answer["ms"]), list(answer["rows"])


@contextmanager
def search_peer(engine: str, vectors: Path, shape: tuple[int, int], queries: Path, log: Path) -> Iterator[SearchPeer]:
    """Builds and runs an index of somebody else until the block ends.

    Args:
        vectors: float32 file without a header, of this shape.
        queries: npy file, float32 [queries, dimension].
        log: where what it prints goes.

    Raises:
        PeerMissing: It is not installed, or cannot be built.
    """
    environment = engine.removesuffix("-lite")
    command = [str(peer_python(environment)), str(_SCRIPTS / "search.py"), engine, str(vectors), *map(str, shape)]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, str(queries)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            mib = float(_answer(process)["mib"])
            yield SearchPeer(engine, _installed_version(environment, engine), process, mib)
        finally:
            process.kill()
            process.wait()


def _ask(process: "subprocess.Popen[str]", question: dict[str, Any]) -> dict[str, Any]:
    assert process.stdin is not None
    process.stdin.write(json.dumps(question) + "\n")
    process.stdin.flush()
    return _answer(process)


def _answer(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise PeerMissing(f"it ended with exit code {process.wait()}; see its log")
    answer: dict[str, Any] = json.loads(line)
    return answer


@dataclass(frozen=True)
class RerankPeer:
    """A reranking server that is asked over HTTP."""

    name: str
    version: str
    address: tuple[str, int]
    model: str

    def rerank(self, query: str, documents: Sequence[str]) -> None:
        """Scores every document. Raises PeerMissing if it does not answer."""
        asked = {"model": self.model, "query": query, "documents": list(documents)}
        connection = http.client.HTTPConnection(*self.address, timeout=_RERANK_SECONDS)
        try:
            connection.request("POST", "/rerank", json.dumps(asked), {"content-type": "application/json"})
            answer = connection.getresponse()
            scored = json.loads(answer.read()).get("results", [])
        finally:
            connection.close()
        if len(scored) != len(documents):
            raise PeerMissing(f"it answered {answer.status} with {len(scored)} of {len(documents)} scores")


@contextmanager
def rerank_peer(model: Path, log: Path) -> Iterator[RerankPeer]:
    """Runs infinity-emb with a cross-encoder until the block ends.

    Args:
        model: Hugging Face directory of the cross-encoder.
        log: where what it prints goes.

    Raises:
        PeerMissing: It is not installed, or does not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    flags = ["v2", "--model-id", str(model), "--host", "127.0.0.1", "--port", str(port)]
    engine = ["--engine", "torch", "--device", "cpu", "--no-bettertransformer"]
    command = [str(peer_python("infinity").parent / "infinity_emb"), *flags, *engine]
    with log.open("w") as output:
        quiet = {**os.environ, "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=quiet)
        try:
            name = "/".join(model.parts[-2:])
            peer = RerankPeer("infinity-emb", _installed_version("infinity", "infinity-emb"), ("127.0.0.1", port), name)
            _wait_until_ready(peer, process)
            yield peer
        finally:
            process.terminate()
            process.wait()


def _wait_until_ready(peer: RerankPeer, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            return peer.rerank("is it ready?", ["yes"])
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise PeerMissing("it does not start; see its log") from None
            time.sleep(0.2)
