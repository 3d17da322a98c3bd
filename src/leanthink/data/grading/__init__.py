"""Tells a right answer from a wrong one."""
