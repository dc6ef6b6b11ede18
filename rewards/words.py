"""Texts as the numbers of their tokens, cut where a text tower ends."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import RewardError
from .weights import remedy, require_transformers

_log = logging.getLogger("hyper_sd")


class Words:
    """Turns texts into the token numbers of one tokenizer, all of one length.

    Args:
        tokenizer: of the package tokenizers. Its cutting and filling up are set anew.
        length: tokens of a text; what is longer is cut, and the log says so once.
        padding: the number that fills up a shorter text.
    """

    def __init__(self, tokenizer: Any, length: int, padding: int):
        self.tokenizer, self.length, self.padding = tokenizer, length, padding
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length, pad_id=padding, pad_token=tokenizer.id_to_token(padding) or "[PAD]")
        self._has_told = False

    @classmethod
    def load(cls, path: Path, entry_id: str, *, count: int, length: int, padding: int) -> "Words":
        """Returns the words of a tokenizer.json file.

        Args:
            path: of the file.
            entry_id: of the catalogue.
            count: words that it has to have.
            length: as the class's.
            padding: as the class's.
        Raises: RewardError for a file that is missing, unreadable or another model's.
        """
        require_transformers()  # brings the package tokenizers
        from tokenizers import Tokenizer

        if not Path(path).is_file():
            raise RewardError(f"{path} is not there. {remedy(entry_id)}")
        try:
            tokenizer = Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
        except Exception as error:  # the package raises nothing narrower
            raise RewardError(f"{path} cannot be read as a tokenizer ({str(error)[:200]}). {remedy(entry_id)}") from error
        if tokenizer.get_vocab_size() != count:
            found = tokenizer.get_vocab_size()
            raise RewardError(
                f"{path} is the tokenizer of another model: it has {found} words, not {count}. {remedy(entry_id)}"
            )
        return cls(tokenizer, length, padding)

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns token numbers and the mask of those that are no filling, both int [batch, length]."""
        encoded = self.tokenizer.encode_batch(list(texts))
        cut = next((text for text, tokens in zip(texts, encoded, strict=True) if tokens.overflowing), None)
        if cut is not None and not self._has_told:
            self._has_told = True
            _log.warning("A score reads the first %d tokens of a prompt; the rest of %r is not read.", self.length, cut[:80])
        return torch.tensor([tokens.ids for tokens in encoded]), torch.tensor([tokens.attention_mask for tokens in encoded])
