"""Scores become rows, and rows become files, a table on a terminal, and a page."""
