"""The groups of figures, one module each. `measure(run)` measures a group and enters its figures in the run's book."""
