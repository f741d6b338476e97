"""Runs put side by side on the films they share, with intervals, as tables and as a page."""
