"""From the lake to the destinations: which ranges are due, delivering them, and proof that each equals the lake."""
