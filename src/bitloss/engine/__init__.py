"""The seam to llama.cpp: tokens in, hidden states or logits out."""
