"""Encoders and language models on a cluster, each scaled on its own, with Ray.

Ray is imported when it is used: ``pip install 'vlcore[ray]'``.
"""
