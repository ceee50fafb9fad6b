"""`trimtok bench`: what a YAML asks for (spec), what the hardware allows (floor), measuring, and what is said of it.

spec, floor, derive, tables, against and plots are plain Python; the other files need torch.
"""
