"""Text to tokens: chat templates, rendering, encoding. Responses become token ids and character spans."""
