"""What engines of other libraries share: prompts, sequences, requests and the self-test."""
