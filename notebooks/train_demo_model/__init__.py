"""How the embedded cross-encoder was made; see `__main__`."""
