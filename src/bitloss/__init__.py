"""What the bits you drop cost."""
