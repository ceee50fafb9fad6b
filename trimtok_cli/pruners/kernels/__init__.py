"""The arithmetic that several methods share: equations written out, and their fast forms."""
