"""The word-level tokenizer of the mini CLIPs, with open_clip's calling convention."""

from collections.abc import Sequence

import torch

from dho_plugin.errors import DataError


class WordTokenizer:
    """Words to token numbers: 0 pads, then the words, then start and end of text; the end has the highest number.

    Args:
        words: the vocabulary in order.
        context_length: length of a row of tokens.
    """

    def __init__(self, words: Sequence[str], context_length: int):
        self.context_length = context_length
        self._ids = {word: k + 1 for k, word in enumerate(words)}
        self.sot_token_id, self.eot_token_id = len(words) + 1, len(words) + 2
        self.vocab_size = len(words) + 3

    def encode(self, text: str) -> list[int]:
        """Return the token numbers of a text, without start and end.

        Raises:
            DataError: a word is not in the vocabulary.
        """
        words = text.lower().replace(".", " . ").replace("_", " ").split()
        unknown = [word for word in words if word not in self._ids]
        if unknown:
            raise DataError(
                f"the mini world's CLIPs do not know the word(s) {', '.join(sorted(set(unknown)))} in {text!r}; "
                f"use words of dho_plugin/models/mini/vocab.txt, e.g. 'a photo of a striped disc.'"
            )
        return [self._ids[word] for word in words]

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> torch.Tensor:
        """Return the tokens of N texts, (N, context_length) int64, padded with 0.

        Raises:
            DataError: a word is unknown, or a text does not fit.
        """
        length = context_length or self.context_length
        texts = [texts] if isinstance(texts, str) else texts
        rows = torch.zeros(len(texts), length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.sot_token_id, *self.encode(text), self.eot_token_id]
            if len(ids) > length:
                raise DataError(
                    f"{text!r} is {len(ids)} tokens long with its start and end; the mini world's CLIPs read {length}. "
                    f"Use fewer words, e.g. TRAINER.COOP.N_CTX 4"
                )
            row[: len(ids)] = torch.tensor(ids)
        return rows
