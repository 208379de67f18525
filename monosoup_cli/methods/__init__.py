"""One method a file, as pure functions over tensors: no files, no printing."""
