"""The catalogue of bad inputs: what the tool is given, and how it refuses or takes it.

A family is a module with `ROWS`, and `table.py` says what a row is. `THOROUGH` are the names of its costly
rows, of kinds that cheaper ones have too: only `make test-slow` tries them. `test_catalogue.py` drives.
"""
