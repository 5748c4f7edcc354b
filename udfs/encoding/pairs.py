"""Pairs of texts to token ids, cut by a named truncation policy.

Each side is tokenised without special tokens, and the two are joined here. This gives exact lengths
before anything is cut, tokenises a query that many candidates share once, and serves every policy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from udfs.encoding.truncation import POLICIES, Counts, needs_longer_side
from udfs.spec import ScorerSpec, Truncation

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
class SpecialTokens:
    """The special tokens of a pair: before the query, between the two, after the document."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: tuple[int, ...]  # token types of: before, query, between, document, after

    @property
    def count(self) -> int:
        """Special tokens of one pair [tokens]."""
        return len(self.before) + len(self.between) + len(self.after)


@dataclass(frozen=True)
class EncodedPairs:
    """N pairs, cut to max_length.

    Attributes:
        queries: token ids of each pair's query, int32[n_i]; pairs may share one array.
        docs: token ids of each pair's document, int32[m_i].
        lengths: int64[N], tokens of each pair, special tokens included.
        truncated: bool[N], whether a token of either side was cut.
    """

    queries: list[Ids]
    docs: list[Ids]
    lengths: Counts
    truncated: NDArray[np.bool_]


@dataclass(frozen=True)
class Batch:
    """Rows padded to the longest, int64[B, L]; `type_ids` is None if the model reads none."""

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    type_ids: NDArray[np.int64] | None


@dataclass
class PairEncoder:
    """Tokenises pairs for one model. Not thread-safe.

    Args:
        tokenizer: of the `tokenizers` package, its own truncation and padding switched off.
        max_length: longest pair [tokens].
        truncation: name of the policy.
        pad_id: id that fills up the shorter rows of a batch.
        has_types: whether the model reads token types.
        cut_left: whether the tokenizer asks for texts to lose their beginning.
    """

    tokenizer: Tokenizer
    max_length: int
    truncation: Truncation
    pad_id: int
    has_types: bool
    cut_left: bool = False

    def __post_init__(self) -> None:
        """Learn the special tokens of a pair from the tokenizer."""
        self.special = _special_tokens(self.tokenizer)
        # Longest text that is tokenised whole at once [characters].
        self._limit = sys.maxsize if self.cut_left else self.max_length * _CHARS_PER_TOKEN

    @classmethod
    def load(cls, path: Path, spec: ScorerSpec) -> PairEncoder:
        """Read the tokenizer of a checkpoint folder, offline.

        Raises:
            ValueError: if the folder has no tokenizer that the `tokenizers` package can run.
        """
        outer = _load_tokenizer(path, spec.trust_remote_code)
        backend: Tokenizer = outer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return cls(
            backend,
            max_length=spec.max_length,
            truncation=spec.truncation,
            pad_id=_pad_id(path, outer.pad_token_id),
            has_types="token_type_ids" in outer.model_input_names,
            cut_left=outer.truncation_side == "left",
        )

    def encode(self, queries: Sequence[str], docs: Sequence[str]) -> EncodedPairs:
        """Tokenise and cut N pairs.

        Raises:
            ValueError: if the two sides differ in number.
        """
        if len(queries) != len(docs):
            raise ValueError(f"{len(queries)} queries against {len(docs)} documents")
        distinct = list(dict.fromkeys(queries))
        by_text = dict(zip(distinct, self._tokenise(distinct), strict=True))
        query_ids = [by_text[query] for query in queries]
        doc_ids = self._tokenise(docs)
        query_counts, doc_counts = _counts(query_ids), _counts(doc_ids)
        if self.truncation == "longest_first":
            self._compare_long_sides(queries, docs, query_counts, doc_counts)
        kept_queries, kept_docs = POLICIES[self.truncation](
            query_counts, doc_counts, self.max_length, self.special.count
        )
        return EncodedPairs(
            queries=[self._cut(ids, n) for ids, n in zip(query_ids, kept_queries, strict=True)],
            docs=[self._cut(ids, n) for ids, n in zip(doc_ids, kept_docs, strict=True)],
            lengths=kept_queries + kept_docs + self.special.count,
            truncated=(kept_queries < query_counts) | (kept_docs < doc_counts),
        )

    def count_tokens(self, queries: Sequence[str], docs: Sequence[str]) -> tuple[Counts, Counts]:
        """int64[N] each: tokens of the queries and of the documents, before anything is cut."""
        return _counts(self._encode(queries)), _counts(self._encode(docs))

    def collate(self, pairs: EncodedPairs, rows: Sequence[int]) -> Batch:
        """Join the sides of the given rows with special tokens, padded to the longest row."""
        width = int(max(pairs.lengths[row] for row in rows))
        input_ids = np.full((len(rows), width), self.pad_id, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        types = np.zeros((len(rows), width), np.int64) if self.has_types else None
        special = self.special
        for at, row in enumerate(rows):
            parts: tuple[Sequence[int] | Ids, ...] = (
                special.before, pairs.queries[row], special.between, pairs.docs[row], special.after,
            )  # fmt: skip
            end = 0
            for part, kind in zip(parts, special.types, strict=True):
                start, end = end, end + len(part)
                input_ids[at, start:end] = part
                if types is not None:
                    types[at, start:end] = kind
            mask[at, :end] = 1
        return Batch(input_ids, mask, types)

    def _cut(self, ids: Ids, count: int) -> Ids:
        return ids[len(ids) - count :] if self.cut_left else ids[:count]

    def _compare_long_sides(
        self, queries: Sequence[str], docs: Sequence[str], query_counts: Counts, doc_counts: Counts
    ) -> None:
        """Correct, in place, the counts of long texts where it matters which side is the longer.

        The text with fewer characters is tokenised whole, the other until it has more tokens.
        """
        count_whole = cache(lambda text: len(self._encode([text])[0]))
        undecided = needs_longer_side(query_counts, doc_counts, self.max_length, self.special.count)
        for at in np.flatnonzero(undecided).tolist():
            sides = [(queries[at], query_counts), (docs[at], doc_counts)]
            (text, counts), (longer, longer_counts) = sorted(sides, key=lambda side: len(side[0]))
            if len(longer) > self._limit:
                counts[at] = count_whole(text)
                longer_counts[at] = len(self._encode_beyond(longer, int(counts[at])))

    def _tokenise(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of each text; of a very long one, at least as many as a pair can hold."""
        limit = self._limit
        if all(len(text) <= limit for text in texts):
            return self._encode(texts)
        ids = self._encode([text[:limit] for text in texts])
        for at, text in enumerate(texts):
            if len(text) > limit and len(ids[at]) <= self.max_length + _MARGIN:
                ids[at] = self._encode_beyond(text, self.max_length)
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
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]


def _counts(ids: Sequence[Ids]) -> Counts:
    return np.fromiter(map(len, ids), np.int64, len(ids))


def _pad_id(path: Path, tokenizers: int | None) -> int:
    """Return the id that pads rows.

    The model's own where it names one: it may tell positions or its last token by it. A model that
    needs one and has none refuses batches itself; to all others, which see a mask, any id will do.
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


def _special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """Learn the special tokens of a pair from a probe, whatever the model's post-processor is."""
    probe = tokenizer.encode("a", "b", add_special_tokens=True)
    sides, ids, types = probe.sequence_ids, probe.ids, probe.type_ids
    query = [at for at, side in enumerate(sides) if side == 0]
    doc = [at for at, side in enumerate(sides) if side == 1]
    if not query or not doc or query[-1] > doc[0]:
        raise ValueError("the tokenizer does not put a pair together as query, then document")
    bounds = [0, query[0], query[-1] + 1, doc[0], doc[-1] + 1, len(ids)]
    parts = [slice(start, end) for start, end in pairwise(bounds)]
    before, _, between, _, after = (tuple(ids[part]) for part in parts)
    kinds = [next(iter(types[part]), 0) for part in parts]
    return SpecialTokens(before, between, after, tuple(kinds))
