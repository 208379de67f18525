"""What a person sees: the commands, their options, and everything that is printed."""
