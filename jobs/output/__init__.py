"""Where results go: OUT, its record, the terminal and MLflow; what a score is, it does not know."""
