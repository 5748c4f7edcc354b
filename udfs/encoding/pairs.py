"""Pairs of texts to token ids, cut by a named truncation policy.

Each side is tokenised without special tokens, and the two are joined here. This gives exact lengths
before anything is cut, tokenises a query that many candidates share once, and serves every policy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from udfs.encoding.truncation import POLICIES, Counts, needs_longer_side
from udfs.spec import ScorerSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# A long text is tokenised from its first characters alone, if these already give more tokens than
# a pair can hold: a 5 MB text takes 0.04 s instead of 2. English has about 4 characters a token.
_CHARS_PER_TOKEN: Final = 16
# A cut in mid-word changes the last tokens, which must not be among those that are kept. WordPiece
# makes one token of a word of more than 100 characters, and up to 100 of the beginning of one.
_MARGIN: Final = 128  # tokens

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class EncodedPairs:
    """N pairs, cut to max_length, their T tokens laid end to end."""

    ids: Ids  # int32[T], special tokens included
    types: Ids | None  # int32[T], token types; None if the model reads none
    lengths: Counts  # int64[N], tokens of each pair
    truncated: NDArray[np.bool_]  # [N], whether a token of either side was cut
    pad_id: int  # fills up shorter rows where a model needs a rectangle

    def take(self, rows: Sequence[int] | NDArray[np.intp]) -> EncodedPairs:
        """Return the pairs of the given rows, in that order."""
        lengths = self.lengths[rows]
        moved = (self.lengths.cumsum() - self.lengths)[rows] - (lengths.cumsum() - lengths)
        at = np.repeat(moved, lengths) + np.arange(lengths.sum())
        types = None if self.types is None else self.types[at]
        return EncodedPairs(self.ids[at], types, lengths, self.truncated[rows], self.pad_id)

    def padded(self) -> dict[str, NDArray[np.int64]]:
        """Return the model's inputs by name, int64[N, L] each, rows padded to the longest."""
        mask = np.arange(self.lengths.max()) < self.lengths[:, None]
        inputs = {
            "input_ids": np.full(mask.shape, self.pad_id, np.int64),
            "attention_mask": mask.astype(np.int64),
        }
        inputs["input_ids"][mask] = self.ids
        if self.types is not None:
            inputs["token_type_ids"] = np.zeros(mask.shape, np.int64)
            inputs["token_type_ids"][mask] = self.types
        return inputs


class PairEncoder:
    """Tokenises pairs for the model in a folder, offline. Not thread-safe.

    Raises:
        ValueError: if the folder has no tokenizer that the `tokenizers` package can run.
    """

    def __init__(self, path: Path, spec: ScorerSpec) -> None:
        """Load the tokenizer, its own truncation and padding switched off."""
        outer = _load_tokenizer(path, spec.trust_remote_code)
        self._tokenizer: Tokenizer = outer.backend_tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._max_length = spec.max_length
        self._truncation = spec.truncation
        self._pad_id = _pad_id(path, outer.pad_token_id)
        self._has_types = "token_type_ids" in outer.model_input_names
        self._cut_left = outer.truncation_side == "left"
        #: Of a prompt: ids of the tokens that answer it.
        self.answers: list[int] = []
        self._special, self._types = self._frame()
        #: Special tokens of a pair [tokens].
        self.special = sum(map(len, self._special))
        # Longest text that is tokenised whole at once [characters].
        self._limit = sys.maxsize if self._cut_left else self._max_length * _CHARS_PER_TOKEN

    def encode(self, queries: Sequence[str], docs: Sequence[str]) -> EncodedPairs:
        """Tokenise and cut N pairs; ValueError if the two sides differ in number."""
        if len(queries) != len(docs):
            raise ValueError(f"{len(queries)} queries against {len(docs)} documents")
        query_ids, doc_ids = self.query_tokens(queries), self._tokenise(docs)
        query_counts, doc_counts = _counts(query_ids), _counts(doc_ids)
        if self._truncation == "longest_first":
            self._compare_long_sides(queries, docs, query_counts, doc_counts)
        return self.join(query_ids, doc_ids, (query_counts, doc_counts))

    def query_tokens(self, queries: Sequence[str]) -> list[Ids]:
        """Token ids of each query; each distinct one is tokenised once."""
        distinct = list(dict.fromkeys(queries))
        by_text = dict(zip(distinct, self._tokenise(distinct), strict=True))
        return [by_text[query] for query in queries]

    def ranged_tokens(self, docs: Sequence[str]) -> Iterator[tuple[Ids, Ids]]:
        """Yield all token ids of each document, int32[T], and where they are, int32[T, 2].

        These are characters of the text: the first one, and the one behind the last.
        """
        for encoding in self._tokenizer.encode_batch(list(docs), add_special_tokens=False):
            ranges = np.array(encoding.offsets, np.int32).reshape(-1, 2)
            yield np.array(encoding.ids, np.int32), ranges

    def join(
        self, query_ids: Sequence[Ids], doc_ids: Sequence[Ids],
        counts: tuple[Counts, Counts] | None = None,
    ) -> EncodedPairs:  # fmt: skip
        """Put N pairs together from the tokens of their sides, and cut them.

        `counts` are those of whole texts, where not all of their tokens are given.
        """
        query_counts, doc_counts = counts or (_counts(query_ids), _counts(doc_ids))
        kept_queries, kept_docs = POLICIES[self._truncation](
            query_counts, doc_counts, self._max_length, self.special
        )
        before, between, after = self._special
        parts = [np.zeros(0, np.int32)]  # there may be no pairs
        for query, n, doc, m in zip(query_ids, kept_queries, doc_ids, kept_docs, strict=True):
            parts += (before, self._cut_query(query, n), between, self._cut(doc, m), after)
        types = np.tile(self._types, len(doc_ids))
        return EncodedPairs(
            ids=np.concatenate(parts),
            types=np.repeat(types, _counts(parts[1:])) if self._has_types else None,
            lengths=kept_queries + kept_docs + self.special,
            truncated=(kept_queries < query_counts) | (kept_docs < doc_counts),
            pad_id=self._pad_id,
        )

    def count_tokens(self, queries: Sequence[str], docs: Sequence[str]) -> tuple[Counts, Counts]:
        """int64[N] each: tokens of the queries and of the documents, before anything is cut."""
        return _counts(self._encode(queries)), _counts(self._encode(docs))

    def _frame(self) -> tuple[tuple[Ids, Ids, Ids], Ids]:
        """Return what stands before, between and after the two sides, and types of all parts."""
        return _special_tokens(self._tokenizer)

    def _cut_query(self, ids: Ids, count: int) -> Ids:
        return self._cut(ids, count)

    def _cut(self, ids: Ids, count: int) -> Ids:
        return ids[len(ids) - count :] if self._cut_left else ids[:count]

    def _compare_long_sides(
        self, queries: Sequence[str], docs: Sequence[str], query_counts: Counts, doc_counts: Counts
    ) -> None:
        """Correct, in place, the counts of long texts where it matters which side is the longer.

        The shorter text is tokenised whole, the other until it has more tokens.
        """
        count_whole = cache(lambda text: len(self._encode([text])[0]))
        undecided = needs_longer_side(query_counts, doc_counts, self._max_length, self.special)
        for at in np.flatnonzero(undecided).tolist():
            sides = [(queries[at], query_counts), (docs[at], doc_counts)]
            (text, counts), (longer, longer_counts) = sorted(sides, key=lambda side: len(side[0]))
            if len(longer) > self._limit:
                counts[at] = count_whole(text)
                longer_counts[at] = len(self._encode_beyond(longer, int(counts[at])))

    def _tokenise(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of each text; of a very long one, at least as many as a pair can hold."""
        ids = self._encode([text[: self._limit] for text in texts])
        for at, text in enumerate(texts):
            if len(text) > self._limit and len(ids[at]) <= self._max_length + _MARGIN:
                ids[at] = self._encode_beyond(text, self._max_length)
        return ids

    def _encode_beyond(self, text: str, count: int) -> Ids:
        """Token ids of a text, all of them unless the first ones are more than `count`."""
        size = self._limit
        while size < len(text):
            size *= 2
            ids = self._encode([text[:size]])[0]
            if size < len(text) and len(ids) > count + _MARGIN:
                return ids[:-_MARGIN]
        return ids

    def _encode(self, texts: Sequence[str]) -> list[Ids]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]


def _counts(ids: Sequence[Ids]) -> Counts:
    return np.fromiter(map(len, ids), np.int64, len(ids))


def _pad_id(path: Path, tokenizers: int | None) -> int:
    """Return the id that pads rows.

    The model's own where it names one, as positions or its last token may be told by it. To models
    that see a mask any id will do; one that needs an id and has none refuses batches itself.
    """
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    own = config.get("pad_token_id")
    return next((pad for pad in (own, tokenizers) if isinstance(pad, int) and pad >= 0), 0)


def _load_tokenizer(path: Path, trust_remote_code: bool) -> Any:
    """Load a tokenizer of transformers that the `tokenizers` package runs."""
    from transformers import AutoTokenizer

    try:
        outer: Any = AutoTokenizer.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (ImportError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"the tokenizer of {path} cannot be loaded ({reason}); make a "
            "tokenizer.json with: pip install sentencepiece protobuf && python -c "
            f"\"from transformers import AutoTokenizer as T; T.from_pretrained('{path}')"
            f".save_pretrained('{path}')\""
        ) from error
    if not getattr(outer, "is_fast", False):
        raise ValueError(
            f"the tokenizer of {path} is a {type(outer).__name__}, which the tokenizers package "
            "cannot run; name a model with a tokenizer.json"
        )
    # transformers makes an empty tokenizer where it does not find the vocabulary.
    if outer.vocab_size <= len(outer.all_special_ids):
        raise ValueError(f"the tokenizer of {path} has no vocabulary; save its tokenizer.json")
    return outer


def _special_tokens(tokenizer: Tokenizer) -> tuple[tuple[Ids, Ids, Ids], Ids]:
    """Learn from a probe how a pair is put together, whatever the model's post-processor is.

    Returns special tokens (before the query, between the two, after the document) and the token
    types of all five parts, in their order.
    """
    probe = tokenizer.encode("a", "b", add_special_tokens=True)
    sides, ids, types = probe.sequence_ids, probe.ids, probe.type_ids
    query = [at for at, side in enumerate(sides) if side == 0]
    doc = [at for at, side in enumerate(sides) if side == 1]
    if not query or not doc or query[-1] > doc[0]:
        raise ValueError("the tokenizer does not put a pair together as query, then document")
    bounds = [0, query[0], query[-1] + 1, doc[0], doc[-1] + 1, len(ids)]
    parts = [slice(start, end) for start, end in pairwise(bounds)]
    before, _, between, _, after = (np.array(ids[part], np.int32) for part in parts)
    kinds = np.array([next(iter(types[part]), 0) for part in parts], np.int32)
    return (before, between, after), kinds
