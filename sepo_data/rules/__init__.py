"""What selection rules are made of: weights, cutoffs, filters and groups of tokens. Pure numpy."""
