"""Checkpoints are found, checked, loaded and asked here.

`loading` makes an Adapter of a name; `adapter` is what the rest of the package sees; `family` asks
what each file in families/ answers; `preprocessor` runs without the model; vision/ is the tower.
"""
