"""Benchmarks: one question a file; run one with ``python -m benchmarks.<name>``."""
