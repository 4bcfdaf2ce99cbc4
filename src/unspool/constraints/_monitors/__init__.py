"""What monitor-guided decoding is made of: reading text, asking an analysis, masks of names."""
