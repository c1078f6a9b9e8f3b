"""Reports on a tokenized dataset: figures, a page with charts, and decoded samples."""
