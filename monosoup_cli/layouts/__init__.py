"""Models whose weights are packed, fused or apart on the disk, read in the layout of another checkpoint."""
