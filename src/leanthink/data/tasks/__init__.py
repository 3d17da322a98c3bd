"""The task families of the embedded reasoner, one file each: how a problem is made and how the teacher solves it."""
