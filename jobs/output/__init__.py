"""Where results go: OUT, its record, the terminal and MLflow; what a score is, it does not know.

`names` has all names in OUT, `folder.OutputFolder` the workspace and the renames, `publish` the
last steps of a command. `locations` refuses a folder, `record` makes run.json, `summary` what the
terminal shows, `tracking` talks to MLflow; `filesystem.Files` reads and writes through Hadoop.
"""
