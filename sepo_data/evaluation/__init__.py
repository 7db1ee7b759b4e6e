"""Measure a policy without a judge: on preference pairs and on sampled answers."""
