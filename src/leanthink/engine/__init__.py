"""Continuous batching on the bounded cache: requests in, tokens out."""
