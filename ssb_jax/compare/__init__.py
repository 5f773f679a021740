"""Runs beside each other: accuracy against what it cost, over seeds and questions, and who is there first.

results.py   run folders and files of results -> one `Result` for each model, seed and set, checked
points.py    results -> points with intervals over seeds and questions, and the cost of reaching an accuracy
output.py    both as tables, CSV, JSON and figures
"""

from ssb_jax.compare.points import Comparison, Point, Reach, compare
from ssb_jax.compare.results import Result, read_results

__all__ = ["Comparison", "Point", "Reach", "Result", "compare", "read_results"]
