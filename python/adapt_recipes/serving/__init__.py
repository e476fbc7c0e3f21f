"""Models on serving engines: prepared for one, launched, and asked by many at once."""
