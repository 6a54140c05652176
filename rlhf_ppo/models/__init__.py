"""The four roles: policy with value head, reference, reward model; and their forward pass."""
