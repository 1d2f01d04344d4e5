"""One file a kind of panel: where it puts its axes, what it draws, and what is said on hover."""
