"""Shards to batches: tokenized datasets read by random access, packed into rows, mixed by weight."""

from pipelines.dataset.token_dataset import TokenDataset

__all__ = ["TokenDataset"]
