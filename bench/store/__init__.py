"""The SQL database that indexes all runs; the run folders remain the truth, from which it can be rebuilt."""
