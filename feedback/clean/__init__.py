"""What is taken out of feedback before anyone trains on it: each part is a function from a frame to kept and dropped."""
