"""Turning ranked tables into numbers that can be trusted: measures, changes, significance."""
