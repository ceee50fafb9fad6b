"""Finished answers -> files of other formats; one file a format, and a line each in `registry`."""
