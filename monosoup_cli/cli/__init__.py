"""The command line: the commands, their options, and everything that is printed."""
