"""Names, headers and bytes of checkpoints: no mathematics; torch only to parse state dicts."""
