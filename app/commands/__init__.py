"""What the commands other than `train` do, one file each. Imported only when asked for, so that help is fast."""
