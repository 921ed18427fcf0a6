"""What trained networks say of a case: probabilities, labels, numbers and warnings."""
