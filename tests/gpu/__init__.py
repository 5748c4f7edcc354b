"""What only a GPU can show; needs torch and transformers, and no Spark."""
