"""Live continuation for many people: one batch of streams, the server before it, its page, and a client."""
