"""Importance matrices: collected from activations, read, written, merged."""
