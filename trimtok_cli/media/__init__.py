"""Image and video files -> upright RGB pixels. Knows no model and no command line."""
