"""The terminal: lines, progress and tables, and the end of a command."""
