"""The two sides of benchmarks/offline_vs_trl.py and what they share."""
