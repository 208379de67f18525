"""Checkpoints that are read: found on the disk or on the Hub, opened, and read by name."""
