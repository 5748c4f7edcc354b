"""The engine and the job against what a user could pick instead: evidence for developers.

`__main__` is the command, `measure` runs every way in turn in processes of their own (`run`), and
`engine`, `spark` and `peers` are the ways. `mixes` makes pairs of `texts`, and `shapes` models.

`gpu` is another command, which needs `udfs` and torch alone: `gpu_ways` is what it measures, in the
processes of `gpu_lanes`; `gpu_profile` and `gpu_report` are its figures.
"""
