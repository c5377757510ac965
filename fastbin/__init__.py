"""fastbin: weight-free neural networks, classifiers whose weights are all 0 or 1, on bit-packed kernels."""
