"""Turn ranked tables into numbers that can be trusted.

`qrels.read_qrels` and `qrels.from_labels` give the judgements, `ranked.read_ranked` a table,
`plan.make_plan` what is asked. `result.evaluate` measures (`run`, `measures`), compares
(`document`, `significance`), counts what moved (`rank_changes`) and how scores lie
(`calibration`), and holds the result against rules (`gate`). `report` draws it.
`measures` is imported by executors; nothing is imported here, so that they need no more.
"""
