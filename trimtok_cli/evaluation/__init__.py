"""Many answers to one question, and what they come to."""
