"""Measurements for docs/benchmarks.md: `make bench`. Nothing here is asserted as a time in the tests."""
