"""What an answer is worth, as each benchmark's authors say: pure functions on strings, one file a
metric. Knows no model, no data set and no file.
"""
