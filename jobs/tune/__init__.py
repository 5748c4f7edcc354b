"""Find settings for a table and a model, in one direction.

`sample` draws candidates of some queries, `settings` says what is tried, `sweep` measures it and
picks the best, `document` lays out tune.json, the recommended file and the terminal's summary.
"""
