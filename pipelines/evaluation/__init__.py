"""A codec beside its own ceiling, a bad line and other codecs, on held-out speech: `focalstream eval-codec`."""
