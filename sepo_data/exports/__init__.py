"""An annotated dataset in the shapes that other trainers read: one small module for each of them."""
