"""Where cells run: what is to be done, the worker that does one cell, and the processes that hold workers."""
