"""What executors need to score (query, document) pairs, and nothing more.

`udf` is the Spark side (`rerank_udf`, `rerank_rows`) and the only module that imports pyspark;
`worker` keeps one scorer per Python worker; `spec.ScorerSpec` says how pairs are scored and gives
the fingerprint. `encoding` makes batches of texts, `scorers` scores them, `forward` runs the model.
Importing the package or any module of it loads no model and probes no device.
"""
