"""The command line, one module for each command. Commands do not import each other."""
