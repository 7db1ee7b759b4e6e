"""The commands: options in, one library call, one report out."""
