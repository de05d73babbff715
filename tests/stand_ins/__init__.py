"""Servers that answer like retrieval and ranking, without an index or a model: they start at once, and do as told."""
