"""Text to tokens: chat templates, rendering, encoding. A response becomes ids and character spans."""
