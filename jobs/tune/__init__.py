"""Find settings for a table and a model: sample, sweep, recommend, in one direction.

`sample` draws pairs of whole queries, `sweep` decides which setting is measured when, `trials`
measures one on an executor, `recommend` turns measurements into rows and picks one, `document`
makes of them tune.json, the recommended file and the terminal's summary. `__main__` is the command.
"""
