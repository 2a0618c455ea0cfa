"""Planned runs: their folders, what trains them, and what they may take of this machine."""
