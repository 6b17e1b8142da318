"""Ways to run brokers for real, and the same topology on one machine to try them."""
