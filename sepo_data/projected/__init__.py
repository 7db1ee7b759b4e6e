"""Annotated rows on a policy's own tokens, and how much of the annotation survives."""
