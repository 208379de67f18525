"""One tensor of a checkpoint as a method sees it: blocks of a matrix, or ranges of elements."""
