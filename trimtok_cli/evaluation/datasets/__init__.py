"""Benchmarks from local files in their published layouts ([names and layouts](README.md)).

Nothing is downloaded, and no model is known.
"""
