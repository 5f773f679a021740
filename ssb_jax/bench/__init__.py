"""Measurements, each one JSON object that says what was run, on what, with which settings and versions, and when."""
