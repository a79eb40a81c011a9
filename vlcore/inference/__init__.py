"""The pipeline: from what a user passes as a prompt to the model's response."""
