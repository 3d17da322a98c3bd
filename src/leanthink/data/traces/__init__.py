"""Recorded requests, and what a policy stamped on their tokens."""
