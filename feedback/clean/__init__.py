"""What is taken out of feedback before anyone trains on it: functions from a frame to kept and dropped."""
