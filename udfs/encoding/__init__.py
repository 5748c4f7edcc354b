"""Texts to batches of token ids: truncation policies, the encoder of pairs, and batch planning.

`PairEncoder` tokenises and cuts pairs, `POLICIES` says how many tokens of each side are kept, and
`plan_batches` groups pairs by their lengths.
"""
