"""Model versions on disk: what is saved comes back, and what cannot be run is refused with a reason."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import save_tiny_bert, writable
from transformers import BertConfig, BertForSequenceClassification, DistilBertConfig, DistilBertModel

from adcascade.artifacts.errors import CorruptVersion
from ranking.artifact import check_lengths, load_base, load_version
from ranking.calibration.calibration import Calibration
from ranking.errors import ModelError
from ranking.inputs.features import FEATURES, content_features, features_for
from ranking.model.batch import PairBatch, pad
from ranking.model.joint import JointCrossEncoder
from ranking.model.shape import ModelShape
from ranking.store import open_store


def test_a_loaded_version_scores_and_describes_itself(world):
    store = open_store(world.model)
    loaded = load_version(store, store.current())
    assert loaded.spec.architecture == "shared_user"
    assert (loaded.spec.layers, loaded.spec.join_layer) == (3, 2)
    assert loaded.spec.features == features_for(
        timed=True, request_rows=4.0, counted=("ad", "category", "user", "user_category")
    ) + content_features(request_rows=4.0)
    assert set(loaded.spec.metrics) >= {"test_auc", "test_log_loss", "test_gauc", "test_ece", "test_ndcg_10"}
    assert loaded.model.text.center.abs().sum() > 0
    assert loaded.counters.totals["user"]["u1"][0] == 30


def test_a_model_of_another_architecture_is_refused_with_the_families_that_work(tmp_path):
    DistilBertModel(DistilBertConfig(dim=32, n_layers=1, n_heads=2, hidden_dim=64, vocab_size=50)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ModelError, match=r"'distilbert' model; the shared-user ranker runs on bert, electra"):
        load_base(str(tmp_path), "shared_user", 0, ModelShape(id_buckets=256))


def test_missing_models_and_impossible_join_layers_are_refused(tmp_path, tiny_bert):
    with pytest.raises(ModelError, match="cannot load"):
        load_base(str(tmp_path / "nothing"), "shared_user", 0, ModelShape(id_buckets=256))
    with pytest.raises(ModelError, match="has 3 layers; the join layer 3"):
        load_base(str(tiny_bert), "shared_user", 3, ModelShape(id_buckets=256))


def test_texts_longer_than_the_model_has_positions_are_refused(tiny_bert):
    model, _ = load_base(str(tiny_bert), "shared_user", 2, ModelShape(id_buckets=256))
    check_lengths(model, 500, 32)
    with pytest.raises(ModelError, match="lower --max-user-tokens"):
        check_lengths(model, 600, 32)


def test_any_published_reranker_runs_as_a_joint_model(tmp_path):
    save_tiny_bert(tmp_path)
    torch.manual_seed(3)
    config = BertConfig.from_pretrained(tmp_path, num_labels=1)
    classifier = BertForSequenceClassification(config).eval()
    classifier.save_pretrained(tmp_path)
    model, _ = load_base(str(tmp_path), "joint", 0, ModelShape(id_buckets=256))
    assert isinstance(model, JointCrossEncoder)
    model.eval()
    assert model.text_is_untrained
    torch.nn.init.constant_(model.head.weight, 0.5)
    user, ad = [2, 10, 11, 12, 3], [2, 20, 21, 3]
    batch = PairBatch(pad([user], 0), pad([ad, [*ad[:2], 3]], 0), (2,), torch.zeros(2, len(FEATURES)))
    with torch.no_grad():
        want = classifier(
            input_ids=torch.tensor([user + ad[1:]]),
            token_type_ids=torch.tensor([[0] * len(user) + [1] * (len(ad) - 1)]),
        ).logits[0, 0]
        torch.testing.assert_close(model(batch)[0], 0.5 * want, atol=1e-5, rtol=0)
    assert not model.text_is_untrained


def test_a_classifier_of_many_labels_is_no_click_model(tmp_path):
    save_tiny_bert(tmp_path)
    config = BertConfig.from_pretrained(tmp_path, num_labels=5)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="classifier of 5 labels"):
        load_base(str(tmp_path), "joint", 0, ModelShape(id_buckets=256))


def test_a_damaged_ctr_file_is_refused(world, tmp_path):
    root = tmp_path / "model"
    shutil.copytree(world.model, root)
    store = open_store(root)
    version = store.current()
    writable(store.path(version) / "ctr.json").write_text("{}")
    with pytest.raises(CorruptVersion, match=r"ctr\.json differs from its checksum"):
        store.verify(version)
    with pytest.raises(CorruptVersion, match="another shape"):
        load_version(store, version)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": ["something else"], "feature_mean": [0], "feature_std": [1]}, "does not compute .something else"),
        ({"shape": {"id_buckets": 256, "layers_of_ice": 3}}, "knows nothing of .layers_of_ice"),
    ],
)
def test_a_version_of_a_later_release_is_refused_and_asks_for_an_upgrade(world, tmp_path, changes, message):
    store = changed_version(world, tmp_path, changes)
    with pytest.raises(ModelError, match=f"{message}.*; upgrade adcascade"):
        load_version(store, store.current())


def changed_version(world, tmp_path, changes):
    """The store of a copy of the world's model with other values in ctr.json."""
    shutil.copytree(world.model, tmp_path / "model")
    store = open_store(tmp_path / "model")
    spec = writable(store.current_path() / "ctr.json")
    spec.write_text(json.dumps({**json.loads(spec.read_text()), **changes}))
    return store


def test_calibration_keeps_the_order_and_stays_a_probability():
    p_click = Calibration(method="platt", slope=2.0, intercept=-1.0).probability(np.array([-50.0, 0.0, 3.0, 50.0]))
    assert (np.diff(p_click) >= 0).all()
    assert p_click[1] == pytest.approx(1 / (1 + np.e))
    assert 0 <= p_click.min() <= p_click.max() <= 1
