"""Which rows of which sources stand in which split: drawing, repeats, training text in test sets."""
