"""Answers of a model to the questions of benchmarks, in the files that their judges read."""
