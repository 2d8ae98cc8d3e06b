"""Step times against published throughputs: ``python -m benchmarks.throughput``."""
