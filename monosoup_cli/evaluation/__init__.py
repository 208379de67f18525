"""What evaluation harnesses left: read, compared, and tested."""
