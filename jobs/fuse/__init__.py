"""Several scores become one order: `fusion` for jobs.rerank, `python -m jobs.fuse` for tables."""
