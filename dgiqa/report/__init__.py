"""What was scored becomes rows, and rows become files, a terminal and a page."""
