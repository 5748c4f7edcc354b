"""Scorers: pairs of texts in, scores out. A new kind of reranker is a module here."""
