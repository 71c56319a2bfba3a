"""Capture the flag, two against two, in mazes that are new in each game."""
