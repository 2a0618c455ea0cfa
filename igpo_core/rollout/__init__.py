"""Batched multi-turn sampling."""
