"""Raylign: feedback logs in, a better model out."""
