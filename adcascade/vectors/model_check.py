"""Whether a Hugging Face model is what it should be, once it is loaded. Knows no ads and not what the model is for.

The library loads nearly anything: weights that it does not find it draws at random, and of a tokenizer that it does not
find it makes one that knows no word. What is checked here would else show as a model that has learned nothing.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

# Ordinary words of some scripts; a tokenizer that knows the letters must know the words, or pieces of them.
_WORDS = {
    "Latin": "price winter running shoes coffee garden house music",
    "capital Latin": "Price Winter Running Shoes Coffee Garden House Music",
    "Cyrillic": "цена зима обувь кофе сад дом музыка город",
    "Greek": "τιμη χειμωνας καφες κηπος σπιτι μουσικη πολη",
    "Arabic": "سعر شتاء حذاء قهوة حديقة بيت مدينة",
    "Hebrew": "מחיר חורף נעל קפה גינה בית עיר",
    "Devanagari": "घर नगर जल फल मन वन धन",
    "Han": "价 冬 天 花 家 音 中 国 人 大",
    "kana": "は に を た が で て と し れ",
    "Hangul": "가격 겨울 신발 커피 정원 음악 도시",
}
_MOST_UNKNOWN = 0.5
# Rows that only round a matrix up are at most so many, or such a share of all.
_SPARE_ROWS, _SPARE_SHARE = 1024, 0.02
# What a file may hold beside the layers: heads of other tasks, and numbers that follow from the configuration.
_HEADS = re.compile(
    r"(^|\.)(cls|lm_head|mlm_head|lm_loss|classifier|classification_head|pre_classifier|qa_outputs|score|pooler|decoder"
    r"|predictions|generator_predictions|generator_lm_head|discriminator_predictions|mask_predictions|sop_classifier"
    r"|vocab_transform|vocab_layer_norm|vocab_projector|seq_relationship|sequence_summary|logits_proj|position_ids"
    r"|inv_freq|masked_bias|attn\.bias)(\.|$)"
)
_LAYERS = re.compile(r"(^|\.)(embeddings?|encoder|layers?|h|blocks?|transformer|model|bert|roberta|electra)\.")
# Positions of learned tables; others (rotary, relative) have no table.
_POSITION_TABLES = ("position_embeddings", "embed_positions", "wpe", "position_embedding")
_NAMED = 3


class BrokenModelError(Exception):
    """A model that would answer, but not as what it claims to be; the message names what is wrong and what to do."""


def check_folder(place: str | Path) -> None:
    """Raises BrokenModelError for a local folder that holds no model, or pickled weights alone; hub names pass."""
    folder = Path(place)
    if not folder.is_dir():
        return
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise BrokenModelError(f"{folder} holds no model: there is no config.json in it")
    for here in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        pickled = sorted(path.name for path in here.glob("pytorch_model*.bin"))
        if pickled and not any(here.glob("*.safetensors")):
            raise BrokenModelError(
                f"{here} holds its weights as a pickle ({pickled[0]}), which could run any code and is never read; "
                "save them as model.safetensors: load the model where you trust it, and call "
                "save_pretrained(folder, safe_serialization=True)"
            )


def check_loading(model: Any, info: Mapping[str, Any], *, has_new_head: bool = False) -> None:
    """Raises BrokenModelError if the files lack weights of the model, or hold layers that the model has not.

    Args:
        info: What `from_pretrained(..., output_loading_info=True)` returned beside the model.
        has_new_head: The head on top of the layers is not in the files: it has yet to be trained.
    """
    inside = f"{model.base_model_prefix}."
    names = list(model.state_dict())
    has_prefix = any(name.startswith(inside) for name in names)

    def may_be_missing(name: str) -> bool:
        return "pooler" in name or (has_new_head and has_prefix and not name.startswith(inside))

    missing = sorted(name for name in info.get("missing_keys", ()) if not may_be_missing(name))
    unexpected = sorted(
        name for name in info.get("unexpected_keys", ()) if _LAYERS.search(name) and not _HEADS.search(name)
    )
    wrong_shape = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info.get("mismatched_keys", ()))
    if not (missing or unexpected or wrong_shape):
        return
    parts = [
        f"{len(found)} {what} ({', '.join(found[:_NAMED])}{', ...' if len(found) > _NAMED else ''})"
        for what, found in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong_shape))
        if found
    ]
    raise BrokenModelError(
        f"its weights are not those of a {type(model).__name__}: of {len(names)}, {'; '.join(parts)}. What is missing "
        f"would be drawn at random. {_advice(missing, unexpected)}"
    )


def _advice(missing: list[str], unexpected: list[str]) -> str:
    for name in unexpected:
        for wanted in missing:
            if name.endswith(f".{wanted}") and (prefix := name.removesuffix(wanted)):
                return (
                    f"Take the prefix {prefix!r} off the names in the file, as save_pretrained of the bare model does"
                )
    return "Give the folder that save_pretrained wrote, with the configuration that belongs to the weights"


def check_weights(model: nn.Module) -> None:
    """Raises BrokenModelError if a weight is NaN or infinite, or a whole matrix is zero."""
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise BrokenModelError(f"its weight {name} has NaN or infinite numbers; take another checkpoint of it")
    for name, module in model.named_modules():
        is_matrix = isinstance(module, nn.Linear) or name.endswith(("word_embeddings", "embed_tokens", "shared"))
        if is_matrix and "pooler" not in name and not bool(module.weight.any()):
            raise BrokenModelError(f"its weight {name}.weight is all zero; take another checkpoint of it")


def check_tokenizer(tokenizer: Any, rows: int) -> None:
    """Raises BrokenModelError unless texts become tokens that the model knows.

    Args:
        rows: Of the model's matrix of word embeddings.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if tokenizer.pad_token_id is None:
        raise BrokenModelError("its tokenizer has no padding token; name one (pad_token) in tokenizer_config.json")
    largest = max([*vocabulary.values(), tokenizer.pad_token_id], default=0)
    if largest >= rows:
        raise BrokenModelError(
            f"its tokenizer has tokens up to number {largest:,}, its word embeddings only {rows:,} rows; "
            "put the tokenizer files that belong to the weights into its folder"
        )
    _check_words(tokenizer, vocabulary)
    spare = rows - len(vocabulary)
    if spare > max(_SPARE_ROWS, _SPARE_SHARE * rows):
        raise BrokenModelError(
            f"its tokenizer has {len(vocabulary):,} tokens, its word embeddings {rows:,} rows: it is the tokenizer of "
            "another model; put the tokenizer files that belong to the weights into its folder"
        )


def _check_words(tokenizer: Any, vocabulary: Iterable[str]) -> None:
    letters = set("".join(vocabulary))
    unknown = {script: _share_unknown(tokenizer, words) for script, words in _WORDS.items()}
    if min(unknown.values()) > _MOST_UNKNOWN:
        raise BrokenModelError(
            f"its tokenizer knows no ordinary word: all become {tokenizer.unk_token}. Its vocabulary has "
            f"{len(set(vocabulary)):,} tokens: put tokenizer.json (or vocab.txt and tokenizer_config.json) beside its "
            "weights"
        )
    for script, share in unknown.items():
        if share > _MOST_UNKNOWN and set(_WORDS[script]) - {" "} <= letters | _capitals(letters, script):
            raise BrokenModelError(
                f"its tokenizer turns {share:.0%} of ordinary words in {script} letters into {tokenizer.unk_token}, "
                "though its vocabulary has these letters; put the tokenizer files that belong to the weights into its "
                "folder (a setting such as do_lower_case may be wrong)"
            )


def _capitals(letters: set[str], script: str) -> set[str]:
    """A vocabulary of small letters is made for texts that are made small first: capitals must be known, too."""
    return {letter.upper() for letter in letters} if script == "capital Latin" else set()


def _share_unknown(tokenizer: Any, words: str) -> float:
    """Of the tokens of some words, those that stand for what is unknown; 1 if there is no token at all."""
    ids: list[int] = tokenizer(words, add_special_tokens=False)["input_ids"]
    return sum(token == tokenizer.unk_token_id for token in ids) / len(ids) if ids else 1.0


def position_limit(model: Any) -> int:
    """The most tokens that a text may have. Raises BrokenModelError if the model names no limit, or two."""
    named = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rsplit(".", 1)[-1] in _POSITION_TABLES:
            # RoBERTa counts on from its padding token.
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            if named is not None and not module.num_embeddings - first <= int(named) <= module.num_embeddings:
                raise BrokenModelError(
                    f"its config.json promises {named} positions (max_position_embeddings), its table has "
                    f"{module.num_embeddings}; give the configuration that belongs to the weights"
                )
            return int(module.num_embeddings) - first
    if not isinstance(named, int) or named < 1:
        raise BrokenModelError(
            f"its config.json names no largest number of positions (max_position_embeddings), but {named!r}: "
            "how long its texts may be is unknown; choose a model that names it"
        )
    return named
