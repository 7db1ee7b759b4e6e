"""Language models: checkpoints, adapters, placement, packed batches, log-probs."""
