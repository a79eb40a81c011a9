"""Helpers without domain knowledge: devices, threads, event loops, queues and logging."""
