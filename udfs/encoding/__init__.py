"""Texts to batches of token ids: `pairs` tokenises, `truncation` cuts, `batching` plans."""
