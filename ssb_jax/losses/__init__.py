"""Divergences between teacher and student (menu.py), and the head applied chunk by chunk (chunked.py)."""
