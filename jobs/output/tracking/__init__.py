"""MLflow. `client` asks it from a process of its own, `runs` is what that process logs and reads.

A job writes its data first and then starts `python -m jobs.output.tracking`, with a time limit: a
server that is down, or never answers, can neither lose data nor hold the job up. The same command
logs the run later.
"""
