"""Benchmarks of speed and memory, where possible beside the software that a user would pick instead."""
