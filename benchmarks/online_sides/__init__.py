"""The two sides of benchmarks/online_vs_trl.py, each one process (ours: with its roles) that is started for one run."""
