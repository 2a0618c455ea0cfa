"""Outcome reward and information gain."""
