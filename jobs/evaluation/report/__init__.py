"""The evaluation and the tuning document as HTML pages for people.

A page is one file without scripts and without references to the network. `render` returns
report.html and its plots, `render_tuning` returns tune.html.
"""

from jobs.evaluation.report.report import render, render_tuning

__all__ = ["render", "render_tuning"]
