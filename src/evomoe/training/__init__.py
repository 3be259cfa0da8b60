"""Section 3.1 of the paper: the stages of a run, from one folder on disk to the next."""
