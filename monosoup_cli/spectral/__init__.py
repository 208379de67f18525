"""Linear algebra on tensors: spectra of updates, low-rank approximations, and products of LoRA factors."""
