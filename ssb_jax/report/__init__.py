"""`ssb report`: one HTML file of one or several runs that opens offline and asks nobody for anything.

    gather.py   a run folder, finished or not -> what the page shows
    tokens.py   the KL between teacher and student at each reply token, and what both would have said instead
    charts.py   figures
    page.py     all of it through the templates page.html, page.css and page.js

What models wrote reaches the page as text alone: the templates escape, the script sets `textContent`, and the page's
content security policy knows no script and no style but its own, by their digests, and no address at all.
"""

from ssb_jax.report.page import write_report

__all__ = ["write_report"]
