"""Results -> files: records, the manifest, the page; one file a format."""
