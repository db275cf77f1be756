"""A `tokenizer.json` of each shape that the Hub holds, trained by `tokenizers` on a few texts."""

import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def _trained(model, trainer: type, special: list[str], texts: Sequence[str], **parts) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    alphabet = pre_tokenizers.ByteLevel.alphabet() if isinstance(parts["decoder"], decoders.ByteLevel) else []
    settings = {"vocab_size": 390, "special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    if trainer is trainers.UnigramTrainer:
        settings["unk_token"] = "<unk>"
    tokenizer.train_from_iterator(texts, trainer(**settings))
    return tokenizer


def gpt2(texts: Sequence[str], normalizer=None) -> tokenizers.Tokenizer:
    """Byte-level BPE; one special token."""
    return _trained(
        models.BPE(), trainers.BpeTrainer, ["<|endoftext|>"], texts, normalizer=normalizer,
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False), decoder=decoders.ByteLevel(),
        post_processor=processors.ByteLevel(trim_offsets=False),
    )  # fmt: skip


def qwen(texts: Sequence[str]) -> tokenizers.Tokenizer:
    """The same behind NFC."""
    return gpt2(texts, normalizers.NFC())


def llama3(texts: Sequence[str]) -> tokenizers.Tokenizer:
    """Byte-level BPE, and BOS put before a text."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    template = processors.TemplateProcessing("<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)])
    split = pre_tokenizers.Split(tokenizers.Regex(LLAMA_3), "isolated")
    return _trained(
        models.BPE(ignore_merges=True), trainers.BpeTrainer, special, texts, decoder=decoders.ByteLevel(),
        pre_tokenizer=pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)]),
        post_processor=processors.Sequence([processors.ByteLevel(trim_offsets=False), template]),
    )  # fmt: skip


def llama2(texts: Sequence[str]) -> tokenizers.Tokenizer:
    """BPE with byte fallback, and a space put before a text, which decoding takes away again."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = _trained(
        models.BPE(), trainers.BpeTrainer, special, texts, decoder=decoders.Fuse(),
        normalizer=normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]),
    )  # fmt: skip
    file = json.loads(trained.to_str())
    file["added_tokens"] = file["added_tokens"][:3]
    file["model"] |= {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(file))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    replace, strip = decoders.Replace("\u2581", " "), decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), strip])
    return tokenizer


def bert(texts: Sequence[str]) -> tokenizers.Tokenizer:
    """WordPiece of lower-case words without accents; spaces, and characters that it does not know, are lost."""
    template = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return _trained(
        models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer, ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], texts,
        normalizer=normalizers.BertNormalizer(), pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        post_processor=template, decoder=decoders.WordPiece(cleanup=True),
    )  # fmt: skip


def t5(texts: Sequence[str]) -> tokenizers.Tokenizer:
    """Unigram, whose vocabulary holds the special tokens; EOS is put behind a text."""
    template = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return _trained(
        models.Unigram(), trainers.UnigramTrainer, ["<pad>", "</s>", "<unk>"], texts, post_processor=template,
        pre_tokenizer=pre_tokenizers.Metaspace(), decoder=decoders.Metaspace(),
    )  # fmt: skip


SHAPES = {each.__name__: each for each in (gpt2, qwen, llama3, llama2, bert, t5)}


def save(tokenizer: tokenizers.Tokenizer, folder: Path, **config) -> Path:
    """Writes a tokenizer into a folder as the Hub has it; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
