"""What Taskpass costs, measured: `python -m bench`. The method is in `docs/performance.md`."""
