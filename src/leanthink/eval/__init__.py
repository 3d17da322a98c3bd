"""Problems to solve, and grading of what a model answered."""
