"""The report: one HTML file that shows whether a run worked."""
