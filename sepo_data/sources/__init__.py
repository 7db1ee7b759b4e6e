"""Reading datasets: files, folders and Hub datasets to rows, rows to pairs or conversations."""
