"""What is learnt on a frozen model: which paths to keep, which tokens to keep."""
