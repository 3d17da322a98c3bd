"""Recorded requests, and the token scores of their policy."""
