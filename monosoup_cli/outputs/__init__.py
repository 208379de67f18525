"""What a run writes: the layout, the files beside the weights, and the journal it is made by."""
