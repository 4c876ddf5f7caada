"""What is known about each architecture: one table of data each, a file per kin."""
