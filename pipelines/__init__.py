"""AUDIO -> SHARDS -> BATCHES: bulk tokenizing, the shard format and its readers, and the command line."""
