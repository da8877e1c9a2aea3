"""A long run under seeded faults: `make soak SEED=7 MINUTES=20`."""
