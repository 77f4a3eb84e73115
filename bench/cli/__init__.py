"""The command line, one module for each command. Commands do not import each other."""

from bench.utils.processes import import_no_working_directory

import_no_working_directory()  # before the commands import anything else
