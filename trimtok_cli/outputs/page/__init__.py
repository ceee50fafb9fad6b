"""The page of a comparison: its cards, pictures, plots and data; `write.py` puts it together."""
