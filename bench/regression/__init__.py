"""The regression gate, `bench check`: a suite's fresh runs against its committed baseline."""
