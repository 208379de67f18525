"""The catalogue of bad inputs: what the tool is given, and how it refuses or takes it.

A family is a module with `ROWS`, and `table.py` says what a row is. `test_catalogue.py` is the one driver.
"""
