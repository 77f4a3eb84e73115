"""From a suite file to cells, with every value validated and located."""
