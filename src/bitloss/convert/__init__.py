"""HF folder -> full-precision GGUF files."""
