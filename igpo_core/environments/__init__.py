"""A question in, observations out."""
