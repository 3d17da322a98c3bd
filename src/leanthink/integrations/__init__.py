"""Adapters to the engines that people run beyond one machine; each imports its own engine and nothing else does."""
