"""Reinforcement learning that thinks fewer tokens: DeepCompress (arXiv 2510.27419)."""
