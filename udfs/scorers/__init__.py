"""Scorers: pairs of texts in, scores out. A new kind is a module, and a branch in `udfs.worker`."""
