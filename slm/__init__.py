"""TOKENS -> TOKENS -> AUDIO: the speech language model, its training, generation and demo."""
