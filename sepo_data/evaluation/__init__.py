"""What can be said of a policy without a judge: on preference pairs, and on answers that it samples."""
