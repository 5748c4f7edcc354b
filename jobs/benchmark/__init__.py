"""The ways of scoring that `jobs.bench` compares, each run in a process of its own."""
