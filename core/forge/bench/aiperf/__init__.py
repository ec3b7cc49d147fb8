"""NVIDIA's AIPerf as a driver of load, in an environment of its own."""
