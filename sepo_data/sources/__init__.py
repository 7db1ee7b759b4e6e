"""Datasets that people have: files, folders and Hub datasets to rows, rows to pairs or conversations."""
