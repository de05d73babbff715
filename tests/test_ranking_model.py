"""The shared-user forward against a plain Hugging Face forward with the equivalent mask and positions."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel, ElectraConfig, ElectraModel, RobertaConfig, RobertaModel

from ranking.model.batch import PairBatch, TokenRows, pad
from ranking.model.shape import ModelShape
from ranking.model.shared_user import ClickHead, SharedUserCrossEncoder
from ranking.runtime.ad_state_cache import AdStateCache

FEATURES = 4
SIZES = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 200}
SHAPES = [  # user lengths, ad lengths of each user
    ((7,), ((5,),)),
    ((7,), ((5, 3, 9, 1),)),
    ((12, 3), ((4, 4), (2, 6, 6))),
    ((40, 2, 17), ((1,), (8, 8, 8), (3, 11))),
]


def make_encoder(family: str, layers: int = 6) -> torch.nn.Module:
    torch.manual_seed(1)
    common = {**SIZES, "num_hidden_layers": layers, "initializer_range": 0.3, "attn_implementation": "eager"}
    if family == "roberta":
        return RobertaModel(RobertaConfig(**common, pad_token_id=1, type_vocab_size=1, max_position_embeddings=130))
    if family == "electra":
        return ElectraModel(ElectraConfig(**common, embedding_size=24))
    return BertModel(BertConfig(**common))


def make_model(family: str, join_layer: int) -> SharedUserCrossEncoder:
    model = SharedUserCrossEncoder(make_encoder(family), join_layer, FEATURES, ModelShape(id_buckets=256)).eval()
    for weight in model.head.last_weights:  # they start at zero, which would hide differences
        torch.nn.init.normal_(weight)
    return model


def make_batch(user_lengths: tuple[int, ...], ad_lengths: tuple[tuple[int, ...], ...], pad_id: int) -> PairBatch:
    generator = torch.Generator().manual_seed(sum(user_lengths))

    def rows(lengths: tuple[int, ...]) -> TokenRows:
        return pad([torch.randint(5, 200, (n,), generator=generator).tolist() for n in lengths], pad_id)

    flat = tuple(length for lengths in ad_lengths for length in lengths)
    dense = torch.randn(len(flat), FEATURES, generator=generator)
    return PairBatch(rows(user_lengths), rows(flat), tuple(map(len, ad_lengths)), dense)


def oracle_logit(model: SharedUserCrossEncoder, user: list[int], ad: list[int], dense: Tensor) -> Tensor:
    """One pair through Hugging Face's own layers: [user ; ad], positions that restart, a mask for each layer."""
    encoder = model.encoder
    is_roberta = encoder.config.model_type == "roberta"
    first = encoder.config.pad_token_id + 1 if is_roberta else 0
    u, a, below = len(user), len(ad), None
    positions = torch.tensor([[*range(first, first + u), *range(first, first + a)]])
    segments = torch.tensor([[0] * u + [0 if is_roberta else 1] * a])
    hidden = encoder.embeddings(input_ids=torch.tensor([user + ad]), position_ids=positions, token_type_ids=segments)
    if hasattr(encoder, "embeddings_project"):
        hidden = encoder.embeddings_project(hidden)
    for number, layer in enumerate(encoder.encoder.layer):
        below = hidden[:, u:].mean(dim=1) if number == model.join_layer else below
        allowed = torch.zeros(u + a, u + a, dtype=torch.bool)
        allowed[:u, :u] = True
        allowed[u:, u:] = True
        allowed[u:, :u] = number >= model.join_layer
        mask = torch.zeros(1, 1, u + a, u + a).masked_fill(~allowed, torch.finfo(torch.float32).min)
        output = layer(hidden, attention_mask=mask)
        hidden = output[0] if isinstance(output, tuple) else output
    return model.head(hidden[:, u], below, dense[None])[0]


def oracle(model: SharedUserCrossEncoder, batch: PairBatch) -> Tensor:
    logits, pair = [], 0
    for row, count in enumerate(batch.ads_per_user):
        user = batch.users.ids[row, : batch.users.lengths[row]].tolist()
        for _ in range(count):
            ad = batch.ads.ids[pair, : batch.ads.lengths[pair]].tolist()
            logits.append(oracle_logit(model, user, ad, batch.dense[pair]))
            pair += 1
    return torch.stack(logits)


@pytest.mark.parametrize(("user_lengths", "ad_lengths"), SHAPES)
@pytest.mark.parametrize("join_layer", [0, 2, 4, 5])
@torch.no_grad()
def test_shared_user_forward_equals_plain_hugging_face_forward(join_layer, user_lengths, ad_lengths):
    model = make_model("bert", join_layer)
    batch = make_batch(user_lengths, ad_lengths, pad_id=0)
    want = oracle(model, batch)
    assert len(want) == 1 or want.std() > 1e-2  # logits that do not vary would prove nothing
    torch.testing.assert_close(model(batch), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["roberta", "electra"])
@torch.no_grad()
def test_other_bert_like_families(family):
    model = make_model(family, join_layer=3)
    batch = make_batch(*SHAPES[2], pad_id=model.encoder.config.pad_token_id)
    torch.testing.assert_close(model(batch), oracle(model, batch), atol=1e-4, rtol=0)


@torch.no_grad()
def test_fully_joined_equals_one_call_of_bert_model_with_a_4d_mask():
    model = make_model("bert", join_layer=0)
    batch = make_batch((9,), ((6,),), pad_id=0)
    u, a = 9, 6
    allowed = torch.ones(1, 1, u + a, u + a, dtype=torch.bool)
    allowed[..., :u, u:] = False
    states = model.encoder(
        input_ids=torch.cat([batch.users.ids, batch.ads.ids], dim=1),
        attention_mask=torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min),
        position_ids=torch.tensor([[*range(u), *range(a)]]),
        token_type_ids=torch.tensor([[0] * u + [1] * a]),
        output_hidden_states=True,
    ).hidden_states
    want = model.head(states[-1][:, u], states[0][:, u:].mean(dim=1), batch.dense)
    torch.testing.assert_close(model(batch), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("join_layer", [0, 2, 5])
@torch.no_grad()
def test_cached_ad_states_give_the_same_logits_cold_and_warm(join_layer):
    model = make_model("bert", join_layer)
    batch = make_batch(*SHAPES[3], pad_id=0)
    texts = [f"ad {number}" for number in range(len(batch.dense))]
    cache = AdStateCache(max_ads=8, max_rows=16, width=48, device=torch.device("cpu"))
    cache._slab[1:].fill_(float("nan"))  # what a fresh slab may hold

    def compute(places):
        rows = TokenRows(batch.ads.ids[list(places)], batch.ads.lengths[list(places)])
        return rows.lengths, model.ad_states(rows)

    users, want = model.user_states(batch.users), oracle(model, batch)
    for expected_hits in (0, len(texts)):
        states, mask, found = cache.gather(texts, compute)
        got, _ = model.add(users, batch.ads_per_user, states, mask, batch.dense)
        assert found == expected_hits
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@torch.no_grad()
def test_an_ad_is_scored_alike_alone_and_among_others():
    model = make_model("bert", join_layer=4).double()  # float32 rounds by 1e-5 and more, differently on each processor
    batch = make_batch((20,), ((3, 14, 8),), pad_id=0)
    batch = replace(batch, dense=batch.dense.double())
    together = model(batch)
    for pair in range(3):
        length = int(batch.ads.lengths[pair])
        ads = TokenRows(batch.ads.ids[pair : pair + 1, :length], batch.ads.lengths[pair : pair + 1])
        alone = model(PairBatch(batch.users, ads, (1,), batch.dense[pair : pair + 1]))
        torch.testing.assert_close(alone[0], together[pair], atol=1e-12, rtol=0)


def test_gradients_reach_every_weight_but_the_word_embeddings():
    model = make_model("bert", join_layer=4).train()
    model(make_batch(*SHAPES[2], pad_id=0)).sum().backward()
    unused = {name for name, weight in model.named_parameters() if weight.grad is None}
    pooler = {"encoder.pooler.dense.weight", "encoder.pooler.dense.bias"}
    assert {name for name in unused if not name.startswith("behaviour.")} == {
        *pooler,
        "encoder.embeddings.word_embeddings.weight",
    }


def test_join_layer_must_exist():
    with pytest.raises(ValueError, match="join_layer must be 0 to 5"):
        make_model("bert", join_layer=6)


@torch.no_grad()
def test_the_linear_part_of_the_head_reads_the_last_row_the_mean_below_and_the_features():
    head = ClickHead(hidden=4, features=2, own_hidden=64)
    parts = [torch.randn(5, width) for width in (4, 4, 2)]
    assert not head(*parts).any()
    torch.nn.init.normal_(head.wide.weight)
    torch.testing.assert_close(head(*parts), torch.cat(parts, dim=1) @ head.wide.weight[0])


@pytest.mark.parametrize("join_layer", [0, 4])
@torch.no_grad()
def test_equal_users_of_a_batch_are_read_once_and_score_as_if_each_were_alone(join_layer):
    model, random = make_model("bert", join_layer).eval(), torch.Generator().manual_seed(0)
    texts = [torch.randint(5, 60, (length,), generator=random).tolist() for length in (3, 20, 9, 4)]
    users = pad([texts[which] for which in (0, 1, 0, 2, 3, 1)], 0)
    ads = pad([torch.randint(5, 60, (7,), generator=random).tolist() for _ in range(9)], 0)
    counts = (1, 2, 1, 3, 1, 1)
    batch = PairBatch(users, ads, counts, torch.randn(9, FEATURES, generator=random))
    read = model.many_users(users, counts)
    assert len(read.mask) == 4
    by_user = model.add(model.user_states(users), counts, model.ad_states(ads), ads.mask, batch.dense)[0]
    torch.testing.assert_close(model(batch), by_user, atol=1e-5, rtol=1e-5)
    assert by_user.std() > 1e-3
