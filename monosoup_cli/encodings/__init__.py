"""Weights that are stored as codes with scales, decoded while they are read; one codec a file."""
