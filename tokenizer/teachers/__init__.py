"""Full-context encoders to learn from, with the weights that others published: WavLM and Whisper."""
