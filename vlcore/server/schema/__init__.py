"""The supported subset of OpenAI's chat API: requests, responses and errors."""
