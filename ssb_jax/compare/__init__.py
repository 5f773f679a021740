"""Runs beside each other: accuracy against what it cost, over seeds and questions, and who is there first.

files.py     a file of results, JSON or CSV -> one `Result` for each model and set, checked
results.py   run folders, studies and files -> all of their results, told apart
points.py    results -> points with intervals over seeds and questions
reach.py     points -> the cost of reaching an accuracy
caveats.py   results -> what a reader must know before believing that
output.py    all of it as tables, CSV, JSON and figures
"""

from ssb_jax.compare.files import Result
from ssb_jax.compare.points import Comparison, Point, compare
from ssb_jax.compare.reach import Reach
from ssb_jax.compare.results import read_results

__all__ = ["Comparison", "Point", "Reach", "Result", "compare", "read_results"]
