"""Reference play of grid worlds: shortest plans, memoryless players, and what they earn."""
