"""A run that scores every row exactly once: inputs, chunks, output folder, merging, workers."""
