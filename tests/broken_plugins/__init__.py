"""Plugins that are each wrong in one way, and the check that is meant for each."""
