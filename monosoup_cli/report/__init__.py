"""Frozen records, the JSON that they become, and the tables drawn from them."""
