"""What is asked and answered: problems, tasks, grading, think tags and recorded traces."""
