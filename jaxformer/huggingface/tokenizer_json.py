"""A tokenizer as the files that transformers loads: tokenizer.json and tokenizer_config.json.

A SentencePiece model is converted, so that ids and texts are the same for every Unicode text. Its pieces have a plain
space where SentencePiece has U+2581. So nothing is normalised, and U+2581 in a text is a character like any other,
encoded as its bytes. transformers' own conversion of such a model (`LlamaTokenizer`) puts a space before each text.

A given tokenizer.json stays as it is, except for settings that no run uses: truncation, padding, dropout and the
clean-up of spaces. In both, BOS comes before each text, as before each document in training, and a text that spells a
special token is plain text: only the post-processor writes BOS.
"""

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.runtime_version import VersionError

from jaxformer.config import UserError, require
from jaxformer.data.sentencepiece_tokenizer import SPACE_MARK
from jaxformer.data.tokenizer import Tokenizer

# Types of SentencePiece's pieces: a piece of text, and one that is split off a text first, such as "\n".
_NORMAL, _USER_DEFINED, _UNUSED = 1, 4, 5
# Types of its models.
_UNIGRAM, _BPE = 1, 2
# Below any sum of log-probabilities of a special token's characters, so that it is never their likeliest reading.
_SPECIAL_SCORE = -1e4


def tokenizer_files(tokenizer: Tokenizer, row_length: int) -> dict[str, bytes]:
    """Returns the files of a tokenizer by name, including a SentencePiece model itself.

    Args:
        tokenizer: of a run.
        row_length: tokens of a row in training, which transformers takes for the longest text.

    Raises:
        UserError: it is a SentencePiece model that tokenizer.json cannot represent.
    """
    if tokenizer.kind == "sentencepiece":
        definition, files = from_sentencepiece(tokenizer.model), {"tokenizer.model": tokenizer.model}
    else:
        definition, files = _tidied(json.loads(tokenizer.model)), {}
    definition = _with_special(definition, {tokenizer.bos: tokenizer.bos_id, tokenizer.eos: tokenizer.eos_id})
    definition["post_processor"] = _bos_before(tokenizer.bos, tokenizer.bos_id)
    config = {
        # Not LlamaTokenizer or another model's: those add their own steps.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **_unknown(definition),
        "bos_token": tokenizer.bos,
        "eos_token": tokenizer.eos,
        # Prompts of several lengths are padded on the left, so that all are continued at their ends.
        "pad_token": tokenizer.eos,
        "padding_side": "left",
        "add_bos_token": True,
        "add_eos_token": False,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": row_length,
        "model_input_names": ["input_ids", "attention_mask"],  # No token types, which `generate` of 4.57 refuses.
    }
    return {"tokenizer.json": _to_json(definition), "tokenizer_config.json": _to_json(config), **files}


def ambiguity(tokenizer: Tokenizer) -> str:
    """Returns a sentence on where a tokenizer's files may give other ids than it does; '' for nowhere."""
    if tokenizer.kind == "tokenizer.json":
        return (
            "The tokenizer is a unigram model: a text that spells one of its special tokens may have other ids in "
            "transformers."
            if json.loads(tokenizer.model)["model"].get("type") == "Unigram"
            else ""
        )
    if _proto(tokenizer.model).trainer_spec.model_type != _UNIGRAM:
        return ""
    return (
        "The tokenizer is a unigram model: if two readings of a text are equally likely up to the rounding of "
        "float32, transformers may choose the other."
    )


def from_sentencepiece(model: bytes) -> dict[str, Any]:
    """Returns the content of tokenizer.json for a lossless SentencePiece model, without a post-processor.

    For a BPE model the ids are the same. For a unigram model they may differ if two readings of a text are equally
    likely up to the rounding of float32, which SentencePiece adds in.

    Raises:
        UserError: it normalises its text, has no byte fallback, or is neither BPE nor unigram.
    """
    proto = _proto(model)
    spec, normalizer = proto.trainer_spec, proto.normalizer_spec
    changes_text = normalizer.precompiled_charsmap or normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces
    require(not changes_text, "the tokenizer normalises its text: tokenizer.json cannot do the same")
    require(spec.byte_fallback, "the tokenizer has no byte fallback: tokenizer.json cannot do the same")
    require(
        not any(piece.type == _UNUSED for piece in proto.pieces),
        "the tokenizer has pieces that are marked as unused: tokenizer.json cannot do the same",
    )
    require(
        spec.model_type in (_BPE, _UNIGRAM),
        "the tokenizer is neither BPE nor unigram: tokenizer.json cannot do the same",
    )
    pieces = [piece.piece.replace(SPACE_MARK, " ") for piece in proto.pieces]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added_token(i, pieces[i], special=piece.type != _USER_DEFINED)
            for i, piece in enumerate(proto.pieces)
            if piece.type == _USER_DEFINED or i in (spec.unk_id, spec.bos_id, spec.eos_id)
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": _bpe(proto, pieces) if spec.model_type == _BPE else _unigram(proto, pieces),
    }


def _proto(model: bytes) -> Any:
    try:
        from sentencepiece import sentencepiece_model_pb2
    except VersionError as error:  # An older one, as Apache Beam asks for.
        advice = "in an environment without Apache Beam, or after `pip install --upgrade protobuf`"
        raise UserError(f"a SentencePiece model cannot be read with this protobuf: {error}; export {advice}") from error
    return sentencepiece_model_pb2.ModelProto.FromString(model)  # pyright: ignore[reportAttributeAccessIssue]


def _bpe(proto, pieces: list[str]) -> dict[str, Any]:
    # The neighbours whose whole has the best score are merged first, and of equal ones the leftmost.
    mergeable = {
        text: (-piece.score, i)
        for i, (text, piece) in enumerate(zip(pieces, proto.pieces, strict=True))
        if piece.type == _NORMAL
    }
    ranked = sorted(
        (*rank, whole[:cut], whole[cut:])
        for whole, rank in mergeable.items()
        for cut in range(1, len(whole))
        if whole[:cut] in mergeable and whole[cut:] in mergeable
    )
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": pieces[proto.trainer_spec.unk_id],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {piece: i for i, piece in enumerate(pieces)},
        "merges": [[left, right] for *_, left, right in ranked],
    }


def _unigram(proto, pieces: list[str]) -> dict[str, Any]:
    scores = [piece.score if piece.type == _NORMAL else _SPECIAL_SCORE for piece in proto.pieces]
    return {
        "type": "Unigram",
        "unk_id": proto.trainer_spec.unk_id,
        "vocab": [list(entry) for entry in zip(pieces, scores, strict=True)],
        "byte_fallback": True,
    }


def _tidied(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a given tokenizer.json without settings that change a text beyond its tokens."""
    definition = dict(definition) | {"truncation": None, "padding": None}
    if "dropout" in definition["model"]:
        definition["model"] = definition["model"] | {"dropout": None}
    if decoder := definition.get("decoder"):
        decoders = [each | ({"cleanup": False} if "cleanup" in each else {}) for each in decoder.get("decoders") or []]
        changed = {"decoders": decoders} if decoders else {"cleanup": False} if "cleanup" in decoder else {}
        definition["decoder"] = decoder | changed
    return definition


def _unknown(definition: Mapping[str, Any]) -> dict[str, str]:
    """Returns the token for unknown characters for tokenizer_config.json; nothing if none is special.

    transformers treats a token named there as special: it would leave it out of texts, and find it in them.
    """
    model = definition["model"]
    unknown = model["vocab"][model["unk_id"]][0] if model.get("unk_id") is not None else model.get("unk_token")
    special = [token["content"] for token in definition.get("added_tokens") or [] if token["special"]]
    return {"unk_token": unknown} if unknown in special else {}


def _with_special(definition: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    """Returns a definition in which some tokens, with their ids, are special ones."""
    others = [token for token in definition.get("added_tokens") or [] if token["content"] not in ids]
    tokens = [*others, *(_added_token(i, content, special=True) for content, i in ids.items())]
    return {**definition, "added_tokens": sorted(tokens, key=lambda token: token["id"])}


def _bos_before(bos: str, bos_id: int) -> dict[str, Any]:
    """Returns a post-processor that puts BOS before a text, and nothing else."""
    start, first, second = {"SpecialToken": {"id": bos, "type_id": 0}}, _sequence("A"), _sequence("B")
    return {
        "type": "TemplateProcessing",
        "single": [start, first],
        "pair": [start, first, second],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }


def _sequence(name: str) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": 0}}


def _added_token(token_id: int, content: str, *, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return {"id": token_id, "content": content, **flags}


def _to_json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
