"""The driver's side of spark-rerank: commands, tables, the score store, ranking and tracking."""
