"""Train a smaller cross-encoder on lists of documents with a teacher's scores, or labels."""
