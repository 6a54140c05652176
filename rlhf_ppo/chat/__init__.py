"""Talking to what a run has left, and to any other model: in a terminal or on a local web page."""
