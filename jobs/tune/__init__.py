"""Find settings for a table and a model, in one direction.

`sample` draws pairs of whole queries, `settings` says what is tried, `sweep` measures it and picks
the best, `document` lays out tune.json, the recommended file and the terminal's summary.
"""
