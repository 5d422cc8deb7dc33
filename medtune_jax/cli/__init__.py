"""One absl program per verb."""
