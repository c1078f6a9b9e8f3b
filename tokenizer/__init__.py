"""AUDIO <-> TOKENS: the streaming speech codec."""
