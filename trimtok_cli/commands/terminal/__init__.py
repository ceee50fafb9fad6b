"""What a terminal is shown, and how a command ends."""
