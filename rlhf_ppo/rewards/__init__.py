"""Reward sources: models, Python functions, services; asked, weighed, missing scores settled."""
