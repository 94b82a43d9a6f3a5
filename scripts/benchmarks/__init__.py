"""The groups of figures of `scripts/benchmark`."""
