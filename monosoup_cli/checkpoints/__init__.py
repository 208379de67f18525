"""Names, headers and bytes of checkpoints: no mathematics, and no torch."""
