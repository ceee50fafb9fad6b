"""The decoders of `decoder_child.py`, one module each: they take frames out of a file."""
