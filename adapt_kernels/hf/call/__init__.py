"""What a `generate` call is asked, checked and planned; the class that asks."""
