"""The vision tower: run, cut short, and asked for what methods read of it."""
