"""Pairs of texts to the prompts of a causal language model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from udfs.encoding.pairs import EncodedPairs, Ids, PairEncoder
from udfs.encoding.truncation import Counts
from udfs.spec import Prompt, ScorerSpec

# Fewest tokens that are left to the document beside a query that is too long.
_LEAST: Final = 4


class PromptEncoder(PairEncoder):
    """Puts pairs into a prompt, and cuts the document where it grows too long.

    A query that takes more than 3/4 of what the prompt leaves is cut, too. Everything around the
    two texts survives, and is tokenised once where no token can span its seam with them.

    Raises:
        ValueError: if max_length leaves no room, or an answer is not one token.
    """

    def __init__(self, path: Path, spec: ScorerSpec, prompt: Prompt) -> None:
        """Load the tokenizer, and tokenise what does not change from pair to pair."""
        self._prompt = prompt
        super().__init__(path, spec)
        self._has_types = self._cut_left = False
        self._head, self._tail = prompt.query.split("{query}")
        self._lead = prompt.document.removesuffix("{document}")
        self._query_end = self._pieces([self._tail])
        around = len(self._pieces([self._head, self._tail]))
        # A quarter of the room is the document's at least, see `truncation.document`.
        least = self.special + 2 * around + 4 * (len(self._pieces([self._lead])) + _LEAST)
        if spec.max_length < least:
            raise ValueError(
                f"max_length={spec.max_length} is too short for a prompt of "
                f"{self.special + around} tokens; raise it to {least} or more"
            )
        self.answers = [
            self._answer(token) for token in (prompt.positive, prompt.negative) if token is not None
        ]

    def encode(self, queries: Sequence[str], docs: Sequence[str]) -> EncodedPairs:
        """Tokenise and cut N prompts; each distinct query is tokenised once."""
        return super().encode(*self._wrap(queries, docs))

    def count_tokens(self, queries: Sequence[str], docs: Sequence[str]) -> tuple[Counts, Counts]:
        """int64[N] each: tokens of the queries and of the documents, before anything is cut."""
        return super().count_tokens(*self._wrap(queries, docs))

    def _wrap(self, queries: Sequence[str], docs: Sequence[str]) -> tuple[list[str], list[str]]:
        """Put the texts between what is tokenised with them: tokens can span the seam."""
        return [self._head + q + self._tail for q in queries], [self._lead + d for d in docs]

    def _frame(self) -> tuple[tuple[Ids, Ids, Ids], Ids]:
        prompt = self._prompt
        fixed = (prompt.before, prompt.between, prompt.after)
        before, between, after = (self._pieces(pieces) for pieces in fixed)
        return (before, between, after), np.zeros(5, np.int32)

    def _cut_query(self, ids: Ids, count: int) -> Ids:
        if count == len(ids):
            return ids
        return np.concatenate([ids[: count - len(self._query_end)], self._query_end])

    def _pieces(self, pieces: Sequence[str]) -> Ids:
        return np.concatenate([np.zeros(0, np.int32), *self._encode(pieces)])

    def _answer(self, token: str | int) -> int:
        ids = [token] if isinstance(token, int) else self._pieces([token]).tolist()
        if len(ids) != 1:
            raise ValueError(
                f"the answer {token!r} of the template is {len(ids)} tokens to this model's "
                "tokenizer; name a token that it has"
            )
        return int(ids[0])


def make_encoder(path: Path, spec: ScorerSpec) -> PairEncoder:
    """Return what makes token ids for the model in a folder."""
    return PromptEncoder(path, spec, spec.prompt) if spec.prompt else PairEncoder(path, spec)
