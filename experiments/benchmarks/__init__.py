"""Benchmarks: how fast the package runs, and what a compiler makes of it where no accelerator is at hand."""
