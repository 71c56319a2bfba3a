"""Environments of every task: a batch of tensors, one numpy environment, a window."""
