"""The examples in the docstrings of what one meets beside the client run, over the example ads and small versions."""

import doctest

import pytest
from conftest import EXAMPLES
from test_client_connection import addresses  # noqa: F401
from test_saved_versions import unpacked

from adcascade.artifacts import store
from adcascade.catalog import ads_file
from adcascade.records import clicks, counters
from adcascade.towers import artifact
from adcascade.vectors import encoder
from adcascade.vectors.encoder import load_encoder
from index_builder.build import BuildOptions, build
from pipeline import client
from ranking.calibration import calibration
from ranking.runtime import engine
from retrieval import index, retriever

OF_FILES = (ads_file, artifact, calibration, clicks, counters, encoder, engine, index, retriever, store)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where README's commands were run: `examples`, and the versions under `data`."""
    folder = tmp_path_factory.mktemp("examples-of-docstrings")
    (folder / "examples").symlink_to(EXAMPLES)
    build(EXAMPLES / "ads.jsonl", folder / "data" / "index", load_encoder("hashing:64"), BuildOptions())
    for kind in ("model", "towers"):
        unpacked(f"{kind}.tar.gz", folder / "data" / kind)
    return folder


def run_examples(module, shown_and_real=()):
    """Runs the examples of a module, each with nothing but what it imports; returns how many there were."""
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    said = []
    for one in doctest.DocTestFinder().find(module):
        one.globs = {}
        for example in one.examples:
            for shown, real in shown_and_real:
                example.source = example.source.replace(shown, real)
        assert runner.run(one, out=said.append).failed == 0, "".join(said)
    return runner.summarize(verbose=False).attempted


@pytest.mark.parametrize("module", OF_FILES, ids=lambda module: module.__name__)
def test_an_example_of_files_runs(module, folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert run_examples(module) > 1


def test_the_example_of_both_stages_runs(addresses):  # noqa: F811
    assert run_examples(client, addresses.items()) > 1
