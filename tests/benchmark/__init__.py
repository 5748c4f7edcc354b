"""The engine and the job against what a user could pick instead: evidence for developers.

`__main__` is the command, `measure` runs every way in turn in processes of their own (`run`), and
`engine`, `spark` and `peers` are the ways. `mixes` makes pairs and `shapes` models.
"""
