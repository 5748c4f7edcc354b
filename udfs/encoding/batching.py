"""Which pairs go through the model together: a pure function of their lengths."""

from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], *, max_tokens: int, max_pairs: int) -> list[list[int]]:
    """Group pairs so that every batch, padded to its longest, fits a token budget.

    Longest first, so that a budget that is too large for the memory shows at once and not after
    hours. The rule "add while longest * (rows + 1) fits" is text-embeddings-inference's.

    Args:
        lengths: int[N], tokens of each pair.
        max_tokens, max_pairs: most padded tokens (rows times longest row) and rows in a batch.

    Returns:
        Lists of indices covering 0..N-1 once. A pair longer than the budget gets its own batch.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        full = not batches or len(batches[-1]) == max_pairs
        if full or longest * (len(batches[-1]) + 1) > max_tokens:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches
