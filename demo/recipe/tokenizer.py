"""A CLIP-style byte-pair tokenizer for the demo's small vocabulary, trained on emojibase's labels and tags."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
# CLIP's own word pattern (openai/CLIP simple_tokenizer.py), so that hosts split prompts exactly as in training.
WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def train_tokenizer(corpus: list[str], vocab_size: int, folder: Path) -> None:
    """Writes vocab.json, merges.txt and tokenizer_config.json of exactly `vocab_size` tokens to `folder`.

    Raises: ValueError when the corpus is too small for so many tokens.
    """
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    pairs = [m.split(" ") if isinstance(m, str) else m for m in json.loads(tokenizer.to_str())["model"]["merges"]]
    base = letters + [letter + "</w>" for letter in letters]  # any byte may stand alone or end a word
    merges = pairs[: vocab_size - 2 - len(base)]
    if len(merges) < vocab_size - 2 - len(base):
        raise ValueError(f"The captions give only {len(merges)} merges; lower text.vocab_size in config.json.")
    tokens = base + ["".join(pair) for pair in merges]
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {token: i for i, token in enumerate([*tokens, START, END])}
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {**special, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2), encoding="utf-8")


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Returns the trained tokenizer; it pads to 77 with the end token, as the hosts do."""
    return CLIPTokenizer.from_pretrained(str(folder))
