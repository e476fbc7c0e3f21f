"""The decode loop: which token comes next, and when a row ends."""
