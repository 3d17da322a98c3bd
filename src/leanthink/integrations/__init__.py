"""LeanThink inside the engines that others run."""
