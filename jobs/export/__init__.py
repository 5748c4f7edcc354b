"""Training sets from ranked tables: hard negatives, with the teacher's scores."""
