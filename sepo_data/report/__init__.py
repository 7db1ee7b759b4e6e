"""The HTML page of an annotated dataset: statistics of all rows, and rows to look at."""
