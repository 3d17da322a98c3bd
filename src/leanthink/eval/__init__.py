"""Evaluations: resumable runs of configurations, their statistics, comparisons and reports."""
