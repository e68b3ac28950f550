"""Benchmarks: the scores of others' tools and our own, beside the paper's."""
