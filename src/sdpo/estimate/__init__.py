"""What a run will cost, known before the model is loaded."""
