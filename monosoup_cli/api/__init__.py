"""The Python functions behind the commands, with the same words."""
