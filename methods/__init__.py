"""The methods of the benchmark, one module each; they reach the harness through the entry points `bench.methods`."""
