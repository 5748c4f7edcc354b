"""What executors need to score pairs. Importing any module loads no model, probes no device."""
