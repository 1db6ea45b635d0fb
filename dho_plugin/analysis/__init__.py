"""What stored logits, features and gradients say about a run; pure functions and the figures of them."""
