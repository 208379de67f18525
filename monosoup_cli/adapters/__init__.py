"""LoRA adapters: read from peft and single files, merged into a base, laid out for peft."""
