"""The ways of scoring that `tests.benchmark.bench` compares, each run in a process of its own."""
