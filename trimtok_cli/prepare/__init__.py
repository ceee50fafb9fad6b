"""Sample -> Prepared: files read, decoded and put into the words of a model, here or in worker
processes.
"""
