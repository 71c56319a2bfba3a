"""Tasks of Wayne et al. 2018 (MERLIN), arXiv:1803.10760."""
