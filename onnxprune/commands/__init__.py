"""The commands of the command line: options in, one call, printing; no logic."""
