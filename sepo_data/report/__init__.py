"""HTML report of an annotated dataset: statistics of all rows, and a sample of rows to read."""
