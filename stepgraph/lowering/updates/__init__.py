"""`optimizer.step()` in fused kernels."""
