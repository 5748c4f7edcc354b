"""The evaluation as one HTML page, for people."""
