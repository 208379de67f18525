"""From headers to a plan, and from a plan to bytes: the loop that every command runs."""
