"""Files, devices, random streams, process groups and CUDA graphs: nothing here knows of benchmarks."""
