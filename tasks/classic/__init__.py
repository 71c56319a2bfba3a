"""Small tests of memory that many papers use."""
