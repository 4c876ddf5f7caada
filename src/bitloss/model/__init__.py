"""What a model is on disk: GGUF files, HF folders, tokenizers."""
