"""The forward pass of each backend: token ids in, one float32 logit a pair out."""
