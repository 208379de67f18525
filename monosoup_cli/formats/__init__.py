"""The bytes of checkpoints: safetensors headers, state dicts, and files that are read in place."""
