"""What selection rules are made of: shares, weights, cutoffs, filters and groups of tokens. Pure numpy."""
