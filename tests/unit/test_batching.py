from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from udfs.encoding.batching import plan_batches


def test_the_longest_come_first_and_share_a_batch_while_the_padded_size_fits() -> None:
    assert plan_batches([9, 3, 4], max_tokens=18, max_pairs=64) == [[0, 2], [1]]
    assert plan_batches([9, 3, 4], max_tokens=27, max_pairs=64) == [[0, 2, 1]]
    assert plan_batches([9, 3, 4], max_tokens=27, max_pairs=2) == [[0, 2], [1]]


def test_no_pairs_make_no_batches() -> None:
    assert plan_batches([], max_tokens=10, max_pairs=10) == []


def test_a_pair_over_the_budget_goes_alone() -> None:
    assert plan_batches([5, 50], max_tokens=10, max_pairs=10) == [[1], [0]]


@given(
    lengths=st.lists(st.integers(1, 600), max_size=300),
    max_tokens=st.integers(1, 5000),
    max_pairs=st.integers(1, 70),
)
def test_every_pair_is_in_one_batch_and_every_batch_in_its_budget(
    lengths: list[int], max_tokens: int, max_pairs: int
) -> None:
    plan = plan_batches(lengths, max_tokens=max_tokens, max_pairs=max_pairs)
    assert sorted(index for batch in plan for index in batch) == list(range(len(lengths)))
    for batch in plan:
        assert 1 <= len(batch) <= max_pairs
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= max_tokens
    longest = [max(lengths[i] for i in batch) for batch in plan]
    assert longest == sorted(longest, reverse=True)
