"""The Hugging Face Hub: its client, its failures, pushing. Knows no dataset or model of ours."""
