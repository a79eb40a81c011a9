"""The pipeline: from a prompt with images to the response of the model."""
