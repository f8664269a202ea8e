"""Several processes: what they tell one another, and weights spread over them."""
