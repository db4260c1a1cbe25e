"""What an evaluation measures and keeps: scores of predictions, recall of keys, parts on disk."""
