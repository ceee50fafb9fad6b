"""Many answers to one question: comparisons and their summary, and the search for VTW's layer."""
