"""What is in a tokenized dataset: figures, a page to look at, and samples to hear."""
