"""Turn ranked tables into numbers that can be trusted; `result.evaluate` calls the other modules.

Executors import `measures`; nothing is imported here, so that they need no more.
"""
