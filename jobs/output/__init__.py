"""Where results go: OUT, its record, the terminal and MLflow.

A run builds its results in a workspace of `OutputFolder` (`folder.py`) and then publishes all of
them at once, or keeps them beside what is published (`publish.py`). `names.py` has the name of
everything in OUT, `locations.py` what is refused of a place, `filesystem.py` the few operations on
any file system, `lock.py` lets one run at a time publish. `record.py` makes run.json, `summary.py`
what the terminal shows, `tracking/` is MLflow. Nothing here knows how a score or a measure is made.
"""
