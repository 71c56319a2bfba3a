"""Pictures of grid worlds from inside."""
