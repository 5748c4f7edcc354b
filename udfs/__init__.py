"""What executors need to score (query, document) pairs with a cross-encoder, and nothing more.

Importing this package, or any module of it, loads no model and probes no device.
"""
