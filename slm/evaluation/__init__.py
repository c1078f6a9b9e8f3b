"""A language model measured: likelihoods beside baselines, pairs to choose from, its own samples."""
