"""Tasks of MiniGrid (Chevalier-Boisvert et al. 2023, arXiv:2306.13831), step by step equal to its own."""
