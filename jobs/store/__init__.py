"""The score store: a grow-only set of scores, keyed by fingerprint and pair key.

    STORE/fingerprint=3f.../_about.json
    STORE/fingerprint=3f.../attempt=9c.../part-00003-....parquet
    STORE/fingerprint=3f.../_corrupt/attempt=9c...-part-00001-....parquet

Any subset of its files is a valid state. Each run writes into a folder of its own and publishes
every task's file as the task ends, so a run that dies leaves whole, readable files, and the next
one scores what is not there yet. Two drivers at once do no harm: equal keys carry equal scores,
and readers take one. A file that is damaged is set aside in `_corrupt`, and its pairs are scored
again: the store is a cache, and stops no job.

`scores` reads and appends; `__main__` is the command that looks after a store.
"""
