"""What every command stands on: how it starts, talks and ends. Nothing here knows a pair.

`command.Command` is the frame of a command, `cli.load_config` its configuration, `open_session` of
`session` its Spark. `errors` has the exit codes, `redaction.masked` hides secrets, `progress_bar`
shows a Spark job. `cache` is the user's cache directory, `compat` bridges releases of Spark.
"""
