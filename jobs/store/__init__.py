"""The score store: a grow-only set of scores, keyed by fingerprint and pair.

    STORE/fingerprint=3f.../_about.json
    STORE/fingerprint=3f.../attempt=9c.../part-00003-....parquet

Any subset of its files is a valid state. Each attempt writes into a folder of its own with
task-level commit, so a job that dies leaves the tasks it finished, whole and readable, and the
next one scores what is not there yet. Two drivers at once do no harm: equal keys carry equal
scores and collapse when read.

`scores` reads and appends; the rest is upkeep, for `python -m jobs.store`.
"""

from jobs.store.scores import SCHEMA, ScoreStore, is_new

__all__ = ["SCHEMA", "ScoreStore", "is_new"]
