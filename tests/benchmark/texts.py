"""Made-up pairs whose lengths follow a named mix. Imports nothing of `jobs`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

#: Folder of the model that comes with the package, found by path: a machine for GPU work has no
#: packages for `jobs`, whose `embedded_model` also finds it in a zip.
EMBEDDED: Final = Path(__file__).parents[2] / "jobs" / "demo" / "model"
CANDIDATES: Final = 100  # documents per query
_QUERY: Final = 6  # tokens
_SPACE: Final = "\u2581"  # begins a piece that begins a word
_SPECIAL: Final = 9  # tokens of a pair that are no text, of the embedded tokenizer
# Median length of a pair [tokens], and its spread: the standard deviation of the logarithm.
_MIXES: Final = {"short": (40, 0.40), "web": (100, 0.45), "long": (430, 0.449)}
_LONG_SHARE: Final = 0.1  # of the skewed mix


def lengths_of(mix: str, pairs: int, max_length: int) -> NDArray[np.int64]:
    """int64[N]: lengths [tokens] of a made-up mix, the same ones every time.

    A mix that is a number has that length throughout.
    """
    if mix.isdigit():
        return np.full(pairs, int(mix))
    generator = np.random.default_rng(4)
    median, spread = _MIXES["short" if mix == "skewed" else mix]
    lengths = np.exp(generator.normal(np.log(median), spread, pairs))
    if mix == "skewed":
        lengths[generator.random(pairs) < _LONG_SHARE] = max_length
    shortest = _SPECIAL + _QUERY + 1
    return np.maximum(lengths.round().astype(np.int64), shortest)


def made_up(
    lengths: NDArray[np.int64], words: NDArray[np.str_], special: int = _SPECIAL
) -> tuple[list[str], list[str]]:
    """Return queries and documents, words in no order that means anything.

    Args:
        lengths: int64[N], of the pairs [tokens].
        words: of one token each.
        special: tokens of a pair that are no text.
    """
    generator = np.random.default_rng(5)
    queries = [
        " ".join(generator.choice(words, _QUERY)) for _ in range(0, len(lengths), CANDIDATES)
    ]
    docs = [
        " ".join(generator.choice(words, length - special - _QUERY)) for length in lengths.tolist()
    ]
    return [queries[row // CANDIDATES] for row in range(len(lengths))], docs


def one_token_words() -> NDArray[np.str_]:
    """Return the words of the embedded vocabulary, each of which is one token of it."""
    tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    pieces = (piece.removeprefix(_SPACE) for piece in tokenizer.get_vocab() if piece[0] == _SPACE)
    words = sorted(word for word in pieces if word.isascii() and word.isalpha() and len(word) > 2)
    found = tokenizer.encode_batch([f"{word} {word}" for word in words], add_special_tokens=False)
    return np.array([w for w, ids in zip(words, found, strict=True) if len(ids.ids) == 2])


def job_order(queries: Sequence[str], docs: Sequence[str]) -> NDArray[np.int64]:
    """int64[N]: rows, longest text first. Like lengths meet in a window, as a job's tasks sort."""
    return np.argsort([-len(q) - len(d) for q, d in zip(queries, docs, strict=True)])
