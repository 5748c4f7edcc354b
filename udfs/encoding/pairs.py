"""Pairs of texts -> token ids, under a named truncation policy.

Both sides are tokenised without special tokens and put together here. That gives exact lengths
before anything is cut, lets a query that many candidates share be tokenised once, and gives every
truncation policy the same shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from udfs.encoding.truncation import POLICIES, Counts
from udfs.spec import ScorerSpec, Truncation

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# A text is tokenised from its first characters alone when those already give more tokens than a
# pair can hold: a 5 MB text takes 0.04 s instead of 2. English has about 4 characters a token.
_CHARS_PER_TOKEN: Final = 16
# Cutting in mid-word may change the last few tokens of the piece; they must not be among the kept.
_MARGIN: Final = 32  # tokens

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Frame:
    """The special tokens of a pair: before the query, between the two, after the document."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: tuple[int, int, int, int, int]  # token types of: before, query, between, doc, after

    @property
    def size(self) -> int:
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


class PairEncoder:
    """Tokenises pairs for one model. Not thread-safe."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        truncation: Truncation,
        pad_id: int,
        has_types: bool,
        cut_left: bool = False,
    ) -> None:
        """Take a tokenizer whose own truncation and padding are off.

        Args:
            tokenizer: of the `tokenizers` package.
            max_length: longest pair [tokens].
            truncation: name of the policy.
            pad_id: id that fills rows up.
            has_types: whether the model reads token types.
            cut_left: whether the tokenizer asks for texts to lose their beginning.
        """
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._policy = POLICIES[truncation]
        self._pad_id = pad_id
        self._has_types = has_types
        self._cut_left = cut_left
        self.frame = _probe_frame(tokenizer)

    @classmethod
    def load(cls, path: Path, spec: ScorerSpec) -> PairEncoder:
        """Read the tokenizer of a checkpoint folder, offline.

        Raises:
            ValueError: if the folder has no tokenizer that the `tokenizers` package can run.
        """
        from transformers import AutoTokenizer

        outer: Any = AutoTokenizer.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=spec.trust_remote_code
        )
        if not getattr(outer, "is_fast", False):
            raise ValueError(
                f"{path} has no fast tokenizer; add a tokenizer.json (save it once with "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...))"
            )
        if outer.pad_token_id is None:
            raise ValueError(f"the tokenizer of {path} has no padding token; set pad_token in it")
        backend: Tokenizer = outer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return cls(
            backend,
            max_length=spec.max_length,
            truncation=spec.truncation,
            pad_id=int(outer.pad_token_id),
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
        query_counts = np.fromiter(map(len, query_ids), np.int64, len(query_ids))
        doc_counts = np.fromiter(map(len, doc_ids), np.int64, len(doc_ids))
        special = self.frame.size
        kept_queries, kept_docs = self._policy(query_counts, doc_counts, self._max_length, special)
        return EncodedPairs(
            queries=[self._cut(ids, n) for ids, n in zip(query_ids, kept_queries, strict=True)],
            docs=[self._cut(ids, n) for ids, n in zip(doc_ids, kept_docs, strict=True)],
            lengths=kept_queries + kept_docs + special,
            truncated=(kept_queries < query_counts) | (kept_docs < doc_counts),
        )

    def counts(self, queries: Sequence[str], docs: Sequence[str]) -> tuple[Counts, Counts]:
        """int64[N] each: tokens of the queries and of the documents, before anything is cut."""
        query, doc = (
            np.array([len(ids) for ids in self._encode(side)]) for side in (queries, docs)
        )
        return query, doc

    def collate(self, pairs: EncodedPairs, rows: Sequence[int]) -> Batch:
        """Put the given rows together, with special tokens, padded to the longest of them."""
        width = int(max(pairs.lengths[row] for row in rows))
        input_ids = np.full((len(rows), width), self._pad_id, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        types = np.zeros((len(rows), width), np.int64) if self._has_types else None
        frame = self.frame
        for at, row in enumerate(rows):
            parts: tuple[Sequence[int] | Ids, ...] = (
                frame.before, pairs.queries[row], frame.between, pairs.docs[row], frame.after,
            )  # fmt: skip
            end = 0
            for part, kind in zip(parts, frame.types, strict=True):
                start, end = end, end + len(part)
                input_ids[at, start:end] = part
                if types is not None:
                    types[at, start:end] = kind
            mask[at, :end] = 1
        return Batch(input_ids, mask, types)

    def _cut(self, ids: Ids, count: int) -> Ids:
        return ids[len(ids) - count :] if self._cut_left else ids[:count]

    def _tokenise(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of each text; of a very long one, at least as many as a pair can hold."""
        limit = self._max_length * _CHARS_PER_TOKEN
        if self._cut_left or all(len(text) <= limit for text in texts):
            return self._encode(texts)
        ids = self._encode([text[:limit] for text in texts])
        enough = self._max_length + _MARGIN
        for at, text in enumerate(texts):
            size = limit
            while size < len(text) and len(ids[at]) < enough:
                size *= 2
                ids[at] = self._encode([text[:size]])[0]
        return ids

    def _encode(self, texts: Sequence[str]) -> list[Ids]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]


def _probe_frame(tokenizer: Tokenizer) -> Frame:
    """Learn the special tokens of a pair from a probe, whatever the model's post-processor is."""
    probe = tokenizer.encode("a", "b", add_special_tokens=True)
    sides, ids, types = probe.sequence_ids, probe.ids, probe.type_ids
    query = [at for at, side in enumerate(sides) if side == 0]
    doc = [at for at, side in enumerate(sides) if side == 1]
    if not query or not doc or query[-1] > doc[0]:
        raise ValueError("the tokenizer does not put a pair together as query, then document")
    before = slice(0, query[0])
    between = slice(query[-1] + 1, doc[0])
    after = slice(doc[-1] + 1, len(ids))

    def kind(part: slice) -> int:
        return int(types[part][0]) if types[part] else 0

    return Frame(
        before=tuple(ids[before]),
        between=tuple(ids[between]),
        after=tuple(ids[after]),
        types=(kind(before), types[query[0]], kind(between), types[doc[0]], kind(after)),
    )
