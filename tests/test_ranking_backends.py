"""Backends of the text layers: whatever runs them, the logits are those of the model."""

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from adcascade.records.users import Context, UserProfile
from pipeline.cli import app
from ranking.artifact import load_base, load_version
from ranking.calibration.recalibrate import recalibrate
from ranking.data.dataset import load_dataset
from ranking.errors import ModelError
from ranking.export.export import export_passes, export_version
from ranking.inputs.features import FEATURES
from ranking.inputs.prepare import prepare
from ranking.model.batch import PairBatch, TokenRows
from ranking.model.passes import AdPass
from ranking.model.shape import ModelShape
from ranking.model.shared_user import SHARED_USER
from ranking.runtime.backends import TOP_FILE, OpenVinoBackend, TorchBackend, fastest
from ranking.runtime.engine import RankingEngine
from ranking.runtime.engine_settings import EngineSettings
from ranking.runtime.text_scorer import kept_by_length
from ranking.store import open_store


@pytest.fixture(scope="module", params=["last layer joined", "all layers joined"])
def model(request, tiny_bert):
    found, _ = load_base(str(tiny_bert), SHARED_USER, 0, ModelShape(id_buckets=64))
    found.join_layer = len(found.layers) - 1 if request.param == "last layer joined" else 0
    torch.manual_seed(0)
    for weight in found.head.last_weights:
        torch.nn.init.normal_(weight)
    return found.eval()


@pytest.fixture(scope="module", params=["torch", "openvino"])
def backend(request, model, tmp_path_factory):
    if request.param == "torch":
        return TorchBackend(model, torch.device("cpu"), bfloat16=False)
    folder = tmp_path_factory.mktemp("passes")
    export_passes(model, len(FEATURES), folder)
    return OpenVinoBackend(folder, bfloat16=False)


def rows(model, lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    words = model.encoder.config.vocab_size
    ids = torch.randint(1, words, (len(lengths), max(lengths)), generator=generator)
    return TokenRows(ids, torch.tensor(lengths))


@pytest.mark.parametrize(("users", "ads"), [([9], [4, 7, 2]), ([3, 14], [5]), ([1, 6, 2], [3] * 40)])
@torch.inference_mode()
def test_logits_are_those_of_the_model(model, backend, users, ads):
    users, ads = rows(model, users), rows(model, ads, seed=1)
    dense = torch.randn(len(ads.ids), len(FEATURES), generator=torch.Generator().manual_seed(2))
    (kept,) = backend.ads([ads])
    passes = AdPass(model)
    assert kept.shape == (len(ads.ids), passes.rows(ads.ids.shape[1]), passes.width)
    extra = passes.rows(0)
    mask = torch.arange(kept.shape[1]) < ads.lengths[:, None] + extra
    for row, user in enumerate(backend.users(users)):
        alone = users.take([row])
        want = model(PairBatch(alone, ads, (len(ads.ids),), dense))
        torch.testing.assert_close(backend.join(user, kept, mask, dense), want, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_an_export_of_an_earlier_release_joins_as_before(model, tmp_path):
    """It has the joined layers in one form, which takes apart itself what is kept of an ad."""
    export_passes(model, len(FEATURES), tmp_path)
    users, ads = rows(model, [9]), rows(model, [4, 7, 2], seed=1)
    dense = torch.randn(3, len(FEATURES), generator=torch.Generator().manual_seed(2))
    passes, want = AdPass(model), model(PairBatch(users, ads, (3,), dense))
    kept = passes(ads.ids, ads.lengths)
    mask = torch.arange(kept.shape[1]) < ads.lengths[:, None] + passes.rows(0)
    (user,) = TorchBackend(model, torch.device("cpu"), bfloat16=False).users(users)
    assert (tmp_path / TOP_FILE).exists() == passes.keeps_keys
    (tmp_path / TOP_FILE).unlink(missing_ok=True)
    for kept_in in (torch.float32, torch.float16):
        backend = OpenVinoBackend(tmp_path, bfloat16=False, kept_in=kept_in)
        tolerance = 1e-4 if kept_in == torch.float32 else 1e-2
        torch.testing.assert_close(backend.join(user, kept, mask, dense), want, rtol=tolerance, atol=tolerance)


@torch.inference_mode()
def test_parts_that_are_read_beside_each_other_come_back_in_order(model, backend):
    parts = [rows(model, [length] * count, seed=length) for length, count in ((9, 7), (2, 1), (5, 4), (3, 12), (8, 2))]
    for part, found in zip(parts, backend.ads(parts), strict=True):
        torch.testing.assert_close(found, backend.ads([part])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 4, 7, 37])
@torch.inference_mode()
def test_what_is_kept_of_ads_does_not_depend_on_who_is_read_beside_them(model, backend, count):
    lengths = [1 + 5 * number % 19 for number in range(count)]
    ads, passes = rows(model, lengths), AdPass(model)
    kept_rows, kept = kept_by_length(backend, ads)
    assert kept_rows.tolist() == [passes.rows(length) for length in lengths]
    for place, length in enumerate(lengths):
        (alone,) = backend.ads([TokenRows(ads.ids[place : place + 1, :length], ads.lengths[place : place + 1])])
        torch.testing.assert_close(kept[place, : kept_rows[place]], alone[0], rtol=1e-4, atol=1e-4)


def test_the_fastest_is_chosen_by_time(model, backend):
    class Slow(TorchBackend):
        def join(self, *arguments):
            for _ in range(50):
                added = super().join(*arguments)
            return added

    slow = Slow(model, torch.device("cpu"), bfloat16=False)
    slow.name = "slow"
    chosen, milliseconds = fastest([slow, backend], model.encoder.config.vocab_size, len(FEATURES))
    assert chosen is backend
    assert milliseconds["slow"] > milliseconds[backend.name] > 0


def test_passes_that_are_not_there_are_an_error(tmp_path):
    with pytest.raises(ModelError, match="cannot read the passes"):
        OpenVinoBackend(tmp_path, bfloat16=False)


@pytest.fixture
def exported(world, tmp_path):
    """A copy of the world's model versions with an exported one published."""
    shutil.copytree(world.model, tmp_path / "model")
    files = ["--ads", str(world.ads), "--clicks", str(world.clicks), "--users", str(world.users)]
    ran = CliRunner().invoke(app, ["export", "--model", str(tmp_path / "model"), *files, "--json"])
    assert ran.exit_code == 0, ran.output
    exports = json.loads(ran.stdout)["exports"]
    assert exports["openvino on cpu in float32"]["largest_difference"] < 1e-3
    return open_store(tmp_path / "model")


def engine(store, **settings):
    return RankingEngine(
        load_version(store, store.current()), EngineSettings(device="cpu", precision="float32", **settings)
    )


def test_an_exported_version_answers_as_before(world, exported, caplog):
    data = load_dataset(world.ads, world.clicks, world.users)
    ads = list(data.ads.values())[:30]
    user = UserProfile("u1", interests="trail shoes")
    query = prepare(user, Context(timestamp=data.log.context_at(0).timestamp), ads, None, skip_unknown=False).query
    before = open_store(world.model)
    assert exported.current() != before.current()
    want = engine(before).rank([query])[0].p_click
    for backend, tolerance in (("torch", 1e-5), ("openvino", 1e-5), ("openvino-int8", 0.01)):
        np.testing.assert_allclose(engine(exported, backend=backend).rank([query])[0].p_click, want, atol=tolerance)
    caplog.set_level(logging.INFO)
    np.testing.assert_allclose(engine(exported).rank([query])[0].p_click, want, atol=0.01)
    for name in ("torch on cpu in float32", "openvino on cpu in float32", "openvino on cpu in int8"):
        assert name in caplog.text


def test_an_export_stays_with_a_version_that_is_calibrated_anew(world, exported):
    data = load_dataset(world.ads, world.clicks, world.users, split="none")
    later = replace(data, log=replace(data.log, time=data.log.time + 10**14))
    found = load_version(exported, recalibrate(exported, "", later).version)
    assert found.export is not None
    assert found.spec.exports.keys() >= {"openvino on cpu in float32"}


def test_a_backend_that_cannot_run_is_refused(world):
    store = open_store(world.model)
    with pytest.raises(ModelError, match="was not exported"):
        engine(store, backend="openvino")
    with pytest.raises(ModelError, match="backend must be"):
        engine(store, backend="tensorflow")


def test_an_export_that_is_not_near_enough_is_refused(world, tmp_path):
    shutil.copytree(world.model, tmp_path / "model")
    store = open_store(tmp_path / "model")
    before = store.current()
    with pytest.raises(ModelError, match="is not the model: a logit differs"):
        export_version(store, "", tolerance=-1.0)
    assert store.current() == before
