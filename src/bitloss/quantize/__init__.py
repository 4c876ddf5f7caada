"""Quantized GGUF files from a source, an importance matrix and a type plan."""
