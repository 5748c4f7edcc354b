"""Finding settings: sample -> measure -> recommend -> write, in one direction."""
