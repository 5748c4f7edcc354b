"""MLflow: the only room that imports it.

A job writes its data first and then starts `python -m jobs.output.tracking` as a process of its
own, with a time limit: a server that is down, or swallows packets, can neither lose data nor hold
the job up. The same command logs the run later.
"""
