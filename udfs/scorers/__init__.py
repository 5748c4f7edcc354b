"""Scorers: pairs of texts in, scores out.

`base` holds the protocol `PairScorer` and its result `Scores`; `cross_encoder` scores with a model;
`stub` scores by a checksum, to time everything else. A new kind of reranker is a module here.
"""
