"""What each operation costs through each backend, and what of it the common interface costs."""
