"""MLflow. `client` asks it from a process of its own, `runs` is what that process does.

A job writes its data first and then starts `python -m jobs.output.tracking`, with a time limit: a
server that is down can neither lose data nor hold the job up. The same command logs it later. The
experiment, a baseline and a registered model are looked up before, the model by the driver itself.
"""
