"""From a file to pixels: one file per kind of media. Knows no model and no command line."""
