"""Everything that is kept: run folders, checkpoints and the SQL database that indexes all runs."""
