"""Held-out prompts: statistics, summary, samples."""
