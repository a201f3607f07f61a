"""Which nodes there are, what they may use, and what is told of them."""
