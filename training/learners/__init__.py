"""The implementations as learners, which the training loop drives without knowing which is which."""
