"""`raylign doctor --gpu`: does this card compute what the CPU does, how fast, and what is missing. See harness.py."""
