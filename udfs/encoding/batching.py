"""Which pairs go through the model together: a pure function of their lengths."""

from __future__ import annotations

from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], *, max_tokens: int, max_pairs: int) -> list[list[int]]:
    """Group pairs so that every batch, padded to its longest, fits a token budget.

    Pairs are taken longest first: the first batch needs the most memory, so a budget that is too
    large shows at once and not after hours. Equal lengths keep their order, which makes the plan
    a function of the lengths alone.

    Args:
        lengths: int[N], tokens of each pair, special tokens included.
        max_tokens: most padded tokens (rows times longest row) in a batch.
        max_pairs: most rows in a batch.

    Returns:
        Lists of indices covering 0..N-1 once, longest batch first. A pair longer than the budget
        gets a batch of its own.

    Raises:
        ValueError: if a budget is below 1.

    The rule "add while longest * (rows + 1) fits" is text-embeddings-inference's.
    """
    if max_tokens < 1 or max_pairs < 1:
        raise ValueError(
            f"max_tokens={max_tokens} and max_pairs={max_pairs} must both be at least 1; raise them"
        )
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        full = not batches or len(batches[-1]) == max_pairs
        if full or longest * (len(batches[-1]) + 1) > max_tokens:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches
