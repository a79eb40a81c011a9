"""Encodes the images of directories and object stores on a cluster, with Ray Data."""
