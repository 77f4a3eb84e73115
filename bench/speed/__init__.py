"""How fast this harness is, against what it replaces, measured side by side in one run."""
