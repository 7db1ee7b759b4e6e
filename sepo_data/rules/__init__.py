"""Building blocks of selection rules: shares, weights, cutoffs, filters and groups of tokens. Pure numpy."""
