"""The block formats in NumPy: float32 operations in libggml's order, block by block. These are the definitions.

Each module holds ``ENCODERS``: tensor type -> function of rows float32 [n_rows, n_per_row] and weights float32
[n_per_row] or None, giving uint8 [n_rows, row_bytes]; and, where it defines them, ``DECODERS``: tensor type -> function
of such bytes and n_per_row, giving float32 [n_rows, n_per_row].
"""
